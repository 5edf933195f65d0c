"""The student, its objective and its teacher, as one module that a distributed engine can wrap."""

from torch import Tensor, nn

from fastkd.data.batches import Batch
from fastkd.methods.objective import Objective
from fastkd.nn.transformer import Transformer
from fastkd.terms.passes import Components, Counts


class Learner(nn.Module):
    """Everything that an update computes with; of the teacher nothing is trained."""

    def __init__(self, model: Transformer, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.teacher = objective.teacher if isinstance(objective.teacher, nn.Module) else None

    def forward(self, batch: Batch, counts: Counts, epoch: int) -> tuple[Tensor, Components]:
        loss, components = self.objective(self.model, batch, counts, epoch)
        return loss, components
