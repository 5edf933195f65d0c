"""Lightning's ModelParallelStrategy, and Accelerate in a loop of one's own, beside one process.

python -m tests.integrations.sharded_lightning FOLDER, as one of WORLD_SIZE processes
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from tests.integrations.sharded import LOSSES, Case, batch, made
from tests.integrations.sharded_trainer import collate, divided_on_a_cpu, rows

UPDATES = 3


def lightning_weights(size, folder):
    """Of student and losses after a few updates of two batches a process, clipped."""
    import lightning
    from lightning.pytorch.strategies import ModelParallelStrategy

    from fastkd.integrations.lightning import CountedLoader, DistillationModule

    case = Case("llama", "", "a2d")
    module = DistillationModule(
        made(case, 1),
        LOSSES["a2d"],
        made(case, 0),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    )
    torch.manual_seed(2)
    for parameter in module.distillation.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rank = int(os.environ.get("RANK", "0"))
    loader = CountedLoader(
        rows()[: 4 * UPDATES][rank::size],
        counts=module.distillation.counts,
        accumulation=2,
        batch_size=2 // size,
        collate_fn=collate,
    )
    strategy = "auto" if size == 1 else ModelParallelStrategy(size, 1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=size,
        strategy=strategy,
        max_epochs=1,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,  # which shuffles
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, loader)
    return _whole(module)


def begun(family, tied, precision):
    """A student in the type of its passes."""
    student = made(Case(family, "", "word_kd", tied), 1)
    return student.to(torch.bfloat16) if precision == "bf16" else student


def accelerate_weights(size, family="llama", tied=False, precision="no"):
    """As Accelerate prepares student and optimizer, clips and saves.

    precision: its `mixed_precision`; the student then begins in that of its passes
    """
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState

    from fastkd.integrations.accelerate import divide_head
    from fastkd.integrations.distillation import Distillation
    from fastkd.integrations.sharded import beside, divide_like

    student, teacher = begun(family, tied, precision), made(Case(family, "", "word_kd", tied), 0)
    plugin = None
    if size == 1:
        student.float()  # as Accelerate does where it divides
    else:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap"
        )
    AcceleratorState._reset_state()  # it keeps the precision of the first one
    accelerator = Accelerator(cpu=True, mixed_precision=precision, fsdp_plugin=plugin)
    divide_head(student, accelerator)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    student, optimizer = accelerator.prepare(student, optimizer)
    if size > 1:
        divide_like(teacher, student)
        assert beside(student.get_output_embeddings()) is not None
    distillation = Distillation(student, LOSSES["word_kd"], teacher)
    for update in range(UPDATES):
        everyone = [batch(2 * update + i) for i in range(2)]
        mine = everyone[accelerator.process_index :: size]
        counts = accelerator.reduce(distillation.counts(mine), "sum")
        for piece in mine:
            loss, _ = distillation(student, piece, counts)
            accelerator.backward(loss * size)
        accelerator.clip_grad_norm_(student.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return accelerator.get_state_dict(student)


def _whole(module):
    if not dist.is_initialized():
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))


def main(folder):
    size = int(os.environ["WORLD_SIZE"])
    found = {"lightning": lightning_weights(size, folder)}
    divided_on_a_cpu()
    found["accelerate"] = accelerate_weights(size)
    found["accelerate_tied"] = accelerate_weights(size, "marian", tied=True)
    found["accelerate_bf16"] = accelerate_weights(size, tied=True, precision="bf16")
    if dist.get_rank() == 0:
        torch.save(found, folder / "weights.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main(Path(sys.argv[1]))
