"""The same few updates by each way of training, alone or as one of several processes.

`python -m torch.distributed.run --nproc-per-node 2 updates.py FOLDER`, from the repository's root,
writes what each way arrives at.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from safetensors.torch import save_file

from fastkd.config.tree import A2D, CrossEntropy, TieKD
from fastkd.integrations.distillation import Distillation
from fastkd.integrations.teacher_columns import TeacherCollator, teacher_columns
from tests.integrations.families import VOCABULARY, teacher_and_student, without_dropout

PAIRS, UPDATE, UPDATES = 16, 4, 4  # sentences in all, sentences and number of updates
LOSSES = [
    CrossEntropy(weight=0.5),
    TieKD(weight=0.5, iterations=2, rank_weight=1.0),
    A2D(normalization="row"),
]
TOKEN_LOSSES = [CrossEntropy(weight=0.5), TieKD(weight=0.5, iterations=1, rank_weight=1.0)]
LR = 1e-2


def pairs():
    """Of very different lengths, so that a mean of means would show."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 9, (PAIRS, 2), generator=draw).tolist()
    return [
        {
            "input_ids": torch.randint(3, 19, (source,), generator=draw).tolist(),
            "labels": torch.randint(3, 19, (target,), generator=draw).tolist(),
        }
        for source, target in lengths
    ]


def collate(features):
    def padded(key, value):
        rows = [torch.tensor(feature[key]) for feature in features]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    source = padded("input_ids", 0)
    mask = (source != 0).long()
    return {"input_ids": source, "attention_mask": mask, "labels": padded("labels", -100)}


def pairs_with_columns():
    """The pairs with all that the teacher expects beside them."""
    teacher, listed = models()[0], []
    for pair in pairs():
        columns = teacher_columns(teacher, collate([pair]), top_k=VOCABULARY)
        listed.append({**pair, **{name: rows[0] for name, rows in columns.items()}})
    return listed


def models():
    torch.manual_seed(0)
    teacher, student = teacher_and_student("marian")
    return teacher, without_dropout(student)


def seeded(module):
    """What is learned beside the student, the same for every way."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)


def optimizer_of(parameters):
    return torch.optim.SGD(parameters, lr=LR)


def own_loop(accumulation, rank=0, size=1):
    teacher, student = models()
    distillation = Distillation(student.train(), LOSSES, teacher)
    seeded(distillation)
    learner = torch.nn.ModuleDict({"student": student, "distillation": distillation})
    model = _Both(learner)
    if size > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = optimizer_of(learner.parameters())
    data, step = pairs(), UPDATE // (accumulation * size)
    for update in range(UPDATES):
        chosen = data[update * UPDATE :][:UPDATE]
        pieces = [chosen[i * step :][:step] for i in range(rank, accumulation * size, size)]
        batches = [collate(piece) for piece in pieces]
        counts = distillation.counts(batches)
        if size > 1:
            dist.all_reduce(counts)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with model.no_sync() if size > 1 and not last else torch.enable_grad():
                (model(batch, counts) * size).backward()
        optimizer.step()
        optimizer.zero_grad()
    return student


class _Both(torch.nn.Module):
    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, batch, counts):
        return self.learner["distillation"](self.learner["student"], batch, counts).loss


def told(columns, losses):
    """Losses, teacher, student, pairs and collator; with columns there is no teacher."""
    teacher, student = models()
    if columns:
        return TOKEN_LOSSES, None, student, pairs_with_columns(), TeacherCollator(collate)
    return losses, teacher, student, pairs(), collate


def by_transformers(accumulation, folder, size=1, columns=False, losses=LOSSES, **settings):
    """The Trainer before training; its student is `trainer.model`."""
    from fastkd.integrations.trainer import DistillationSeq2SeqTrainer

    losses, teacher, student, data, collator = told(columns, losses)
    arguments = transformers.Seq2SeqTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=UPDATE // (accumulation * size),
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{"max_steps": UPDATES, "save_strategy": "no", **settings},
    )

    class InOrder(DistillationSeq2SeqTrainer):
        def _get_train_sampler(self, *arguments):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(
        model=student,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator,
        losses=losses,
        teacher=teacher,
    )
    seeded(trainer.distillation)
    return trainer


def by_lightning(accumulation, folder, rank=0, size=1, columns=False):
    import lightning

    from fastkd.integrations.lightning import CountedLoader, DistillationModule

    losses, teacher, student, data, collator = told(columns, LOSSES)
    module = DistillationModule(student.train(), losses, teacher, optimizer=optimizer_of)
    seeded(module.distillation)
    # Lightning's own sampler would shuffle.
    shares = torch.utils.data.DistributedSampler(pairs(), size, rank, shuffle=False)
    loader = CountedLoader(
        data,
        counts=module.distillation.counts,
        accumulation=accumulation,
        batch_size=UPDATE // (accumulation * size),
        collate_fn=collator,
        sampler=shares,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=size,
        strategy="ddp" if size > 1 else "auto",
        max_steps=UPDATES,
        accumulate_grad_batches=accumulation,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    trainer.fit(module, loader)
    return student, trainer


def main(folder: Path) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    students = {"own": own_loop(2, rank, size)}
    trainer = by_transformers(2, folder / "transformers", size)
    trainer.train()
    students["transformers"] = trainer.model
    students["lightning"] = by_lightning(2, folder / "lightning", rank, size)[0]
    if rank == 0:
        for name, student in students.items():
            weights = {k: v.detach().clone() for k, v in student.named_parameters()}
            save_file(weights, folder / f"{name}.safetensors")
        torch.save(trainer.state.log_history, folder / "log.pt")
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
