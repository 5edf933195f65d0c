"""Student and teacher divided by FSDP2, in one's own loop of several processes.

`torchrun --nproc-per-node 2 examples/sharded_loop.py`, on GPUs or on CPUs alone.
"""

import torch
import torch.distributed as dist
from cipher import collate, sentences
from models import accuracy, marian, trained_teacher
from torch.distributed.device_mesh import init_device_mesh

from fastkd.integrations.distillation import Distillation
from fastkd.integrations.sharded import divide, divide_like, whole_state
from fastkd.losses import A2D, CrossEntropy, WordKD

STEPS, BATCH = 150, 32  # updates; sentences a process

device = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if device == "cuda" else "gloo")
rank, size = dist.get_rank(), dist.get_world_size()
if device == "cuda":
    torch.cuda.set_device(rank % torch.cuda.device_count())
mesh = init_device_mesh(device, (size,))

torch.manual_seed(1)  # every process makes the same models, and keeps its parts of them
teacher, student = trained_teacher(), marian(layers=1, width=32)
right = accuracy(teacher)
divide(student, mesh)
divide_like(teacher, student)

losses = [CrossEntropy(weight=0.5), WordKD(weight=0.5), A2D()]
distillation = Distillation(student, losses, teacher).to(device)
parameters = [*student.parameters(), *distillation.parameters()]
# One by one, as divided and whole parameters do not mix in one operation.
optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, foreach=False)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, STEPS)
data = sentences(BATCH * size * STEPS, seed=3)
for step in range(STEPS):
    mine = data[BATCH * size * step :][rank : BATCH * size : size]
    batch = {name: tensor.to(device) for name, tensor in collate(mine).items()}
    counts = distillation.counts([batch])
    dist.all_reduce(counts)  # losses are divided by the sizes of the whole update
    loss, components = distillation(student, batch, counts)
    (loss * size).backward()  # FSDP2 averages gradients
    for parameter in distillation.parameters():  # what A2D learns is whole in each process
        dist.all_reduce(parameter.grad)
        parameter.grad /= size
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    if step % 30 == 0 and rank == 0:
        print(f"{step}: " + "  ".join(f"{k} {v:.3f}" for k, v in components.items()))

weights = whole_state(student)
if rank == 0:
    saved = marian(layers=1, width=32)
    saved.load_state_dict(weights)
    print(f"right: teacher {right:.1%}, student {accuracy(saved):.1%}")
dist.destroy_process_group()
