"""A student distilled by Hugging Face's Trainer: `python examples/with_transformers.py`."""

import tempfile

import torch
from cipher import collate, sentences
from models import accuracy, marian, trained_teacher
from transformers import Seq2SeqTrainingArguments

from fastkd.integrations.trainer import DistillationSeq2SeqTrainer
from fastkd.losses import A2D, CrossEntropy, TieKD

torch.manual_seed(1)
teacher, student = trained_teacher(), marian(layers=1, width=32)
with tempfile.TemporaryDirectory() as folder:
    trainer = DistillationSeq2SeqTrainer(
        model=student,
        teacher=teacher,
        losses=[CrossEntropy(weight=0.5), TieKD(weight=0.5, iterations=2), A2D()],
        args=Seq2SeqTrainingArguments(
            output_dir=folder,
            max_steps=150,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            logging_steps=50,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=sentences(9_600, seed=3),
        data_collator=collate,
    )
    trainer.train()
print(f"right: teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
