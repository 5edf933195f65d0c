"""The linear token losses of weights that processes divide, beside those of one process."""

import itertools

import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from fastkd import watching
from fastkd.functional import linear_token_distillation_loss

VOCABULARY, FACTOR = 37, 2.0
OPTIONS = {
    "all": {
        "ce_weight": 0.5,
        "kd_weight": 0.5,
        "label_smoothing": 0.1,
        "rank_weight": 0.3,
        "return_prediction": True,
    },
    "divergence": {"ce_weight": 0.0, "kd_weight": 1.0, "divergence": "jsd", "entropy_weight": 0.1},
    "alone": {"ce_weight": 1.0, "kd_weight": 0.0},
    "vocabulary": {"ce_weight": 1.0, "kd_weight": 1.0, "vocabulary": 33},
    "later": {"ce_weight": 1.0, "kd_weight": 1.0, "reduction": "none"},
}


def differences(mesh, rank, size):
    """By case: of loss and gradients, in float64, and how many predictions differ."""
    placements = [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    found = {}
    for backend, (name, options) in itertools.product(("reference", "torch"), OPTIONS.items()):
        with watching.pretending(watching.Pretence(chunk=5 * VOCABULARY)):  # several, not as many
            values = _differences(mesh, placements, rank, size, backend, options)
        found[f"weights,{backend},{name},dimensions={mesh.ndim}"] = [values]
    return found


def _differences(mesh, placements, rank, size, backend, options):
    random = torch.Generator().manual_seed(3)
    like = {"generator": random, "dtype": torch.float64}
    weight, theirs = torch.randn(VOCABULARY, 8, **like), torch.randn(VOCABULARY, 6, **like)
    bias = torch.randn(VOCABULARY, **like)
    hidden, taught = torch.randn(4, 9, 8, **like), torch.randn(4, 9, 6, **like)
    target = torch.randint(33, (4, 9), generator=random)
    target[2, 3:] = target[1] = -100

    def losses(hidden, weight, bias, taught, theirs, target, backend):
        return linear_token_distillation_loss(
            hidden, weight, taught, theirs, target, student_bias=bias, backend=backend, **options
        )

    whole, shift, states = (each.clone().requires_grad_() for each in (weight, bias, hidden))
    expected = losses(states, whole, shift, taught, theirs, target, "reference")
    expected.loss.sum().backward()
    mine = slice(rank, 4, size)
    divided = distribute_tensor(weight, mesh, placements).requires_grad_()
    its_bias = distribute_tensor(bias, mesh, placements).requires_grad_()
    own = hidden[mine].clone().requires_grad_()
    teacher = distribute_tensor(theirs, mesh, placements)
    got = losses(own, divided, its_bias, taught[mine], teacher, target[mine], backend)
    (got.loss.sum() * FACTOR).backward()
    total = got.loss.detach().sum()
    dist.all_reduce(total)
    errors = [
        total - expected.loss.sum(),
        divided.grad.full_tensor() / FACTOR - whole.grad,
        its_bias.grad.full_tensor() / FACTOR - shift.grad,
        own.grad / FACTOR - states.grad[mine],
    ]
    if options.get("return_prediction"):
        errors.append((got.prediction != expected.prediction[mine]).double())
    return max(float(error.abs().max()) for error in errors)
