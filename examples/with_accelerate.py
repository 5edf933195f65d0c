"""A student distilled in Accelerate's loop: `accelerate launch examples/with_accelerate.py`.

Alone, on several devices (`--num_processes 2`), or divided over them by FSDP2 (`--use_fsdp
--fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP
--fsdp_cpu_ram_efficient_loading false`).
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from cipher import collate, sentences
from models import accuracy, marian, trained_teacher

from fastkd.integrations.accelerate import divide_head
from fastkd.integrations.distillation import Distillation
from fastkd.integrations.sharded import divide_like
from fastkd.losses import CrossEntropy, WordKD

STEPS, BATCH, ACCUMULATION = 200, 32, 2  # updates; sentences of a batch; batches of an update

accelerator = Accelerator()
size = accelerator.num_processes
torch.manual_seed(1)
teacher, student = trained_teacher(), marian(layers=1, width=32)
divide_head(student, accelerator)  # with FSDP2, which then never makes it whole
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.0)
data = torch.utils.data.DataLoader(
    sentences(BATCH * ACCUMULATION * size * STEPS, seed=3), BATCH, collate_fn=collate
)
model, optimizer, data = accelerator.prepare(student, optimizer, data)
student = accelerator.unwrap_model(model)
if accelerator.distributed_type == DistributedType.FSDP:
    divide_like(teacher, student)
else:
    teacher.to(accelerator.device)
losses = [CrossEntropy(weight=0.5), WordKD(weight=0.5)]
distillation = Distillation(student, losses, teacher)

batches = iter(data)
for step in range(STEPS):
    update = [next(batches) for _ in range(ACCUMULATION)]
    # Losses are divided by the sizes of the whole update, over all processes.
    counts = accelerator.reduce(distillation.counts(update).to(accelerator.device), "sum")
    for number, batch in enumerate(update):
        waits = number + 1 < ACCUMULATION
        with accelerator.no_sync(model) if waits else torch.enable_grad():
            loss, components = distillation(model, batch, counts)
            accelerator.backward(loss * size)  # gradients are averaged over processes
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * (1 - step / STEPS)
    optimizer.step()
    optimizer.zero_grad()
    if step % 30 == 0:
        accelerator.print(f"{step}: " + "  ".join(f"{k} {v:.3f}" for k, v in components.items()))

weights = accelerator.get_state_dict(model)
if accelerator.is_main_process:
    saved = marian(layers=1, width=32)
    saved.load_state_dict(weights)
    print(f"right: teacher {accuracy(trained_teacher()):.1%}, student {accuracy(saved):.1%}")
