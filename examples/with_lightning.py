"""A student distilled by Lightning's Trainer: `python examples/with_lightning.py`."""

import lightning
import torch
from cipher import collate, sentences
from models import accuracy, marian, trained_teacher

from fastkd.integrations.lightning import CountedLoader, DistillationModule
from fastkd.losses import A2D, CrossEntropy, WordKD

torch.manual_seed(1)
teacher, student = trained_teacher(), marian(layers=1, width=32).train()
module = DistillationModule(
    student,
    [CrossEntropy(weight=0.5), WordKD(weight=0.5), A2D()],
    teacher,
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
)
loader = CountedLoader(
    sentences(9_600, seed=3),
    counts=module.distillation.counts,
    accumulation=2,
    batch_size=32,
    collate_fn=collate,
    shuffle=True,
)
trainer = lightning.Trainer(
    max_steps=150,
    accumulate_grad_batches=2,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(module, loader)
for name in ("cross_entropy", "word_kd", "a2d.encoder", "a2d.decoder", "a2d.cross"):
    print(f"{name}: {trainer.callback_metrics[name]:.4f}")
print(f"right: teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
