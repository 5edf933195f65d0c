"""One of two processes meets a batch that its model's own loss refuses.

python -m tests.integrations.refused FOLDER, as one of WORLD_SIZE processes
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers

from fastkd.errors import InputError
from fastkd.integrations.distillation import Distillation
from fastkd.integrations.trainer import DistillationTrainer
from fastkd.losses import CrossEntropy, WordKD
from tests.integrations.families import build, causal, labelled

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)


class Doubled(transformers.LlamaForCausalLM):
    """Another loss where a batch has an attention mask."""

    def forward(self, input_ids=None, labels=None, attention_mask=None, **inputs):
        inputs |= {"labels": labels, "attention_mask": attention_mask}
        output = super().forward(input_ids=input_ids, **inputs)
        if output.loss is not None and attention_mask is not None:
            output.loss = 2 * output.loss
        return output


def batch(refused):
    inputs = causal()
    return {**inputs, "attention_mask": torch.ones(3, 7).long()} if refused else inputs


def student():
    torch.manual_seed(0)
    return Doubled(build("llama").config)


class Startless(transformers.MarianMTModel):
    def prepare_decoder_input_ids_from_labels(self, labels):
        raise ValueError("decoder_start_token_id has to be defined")  # as T5 tells it


def startless(given):
    """An encoder-decoder that does not tell its decoder's input; batches that do, or do not."""
    inputs = labelled("marian")
    start = torch.cat([torch.full((3, 1), 2), inputs["labels"][:, :-1]], dim=1)
    decoder_input = {"decoder_input_ids": start.masked_fill(start == -100, 0)}
    return Startless(build("marian").config), inputs | (decoder_input if given else {})


def divided(model):
    from torch.distributed.fsdp import fully_shard

    for layer in getattr(model.model, "layers", ()):
        fully_shard(layer)
    return fully_shard(model)


def bare_loop(prepare, mine, teacher=None, model=None):
    """mine: this process's batches of an update, by the update's number"""
    model = model or student()
    losses = [PLAIN] if teacher is None else [PLAIN, WordKD(weight=1.0)]
    distillation = Distillation(model, losses, teacher)
    wrapped = prepare(model)
    for update in range(3):
        batches = mine(update)
        counts = distillation.counts(batches)
        dist.all_reduce(counts)
        for inputs in batches or [batch(False)]:
            loss = distillation(wrapped, inputs, counts).loss
            (loss * dist.get_world_size()).backward()


def by_bare_loops(rank):
    """Rank 1 refuses: what its model's own loss tells, later or at first; what it is not given."""
    usual, other = batch(False), batch(True)
    unlabelled, unread = ({name: usual[name]} for name in ("input_ids", "labels"))
    untold, told = startless(rank == 0)
    ddp = torch.nn.parallel.DistributedDataParallel

    def in_update(refused, found):
        return lambda update: found if rank == 1 and update == refused else [usual]

    return {
        "bare": lambda: bare_loop(ddp, in_update(1, [other])),
        "fsdp2": lambda: bare_loop(divided, in_update(1, [other])),
        "fsdp2_teacher": lambda: bare_loop(divided, in_update(0, [other]), divided(build("llama"))),
        "fsdp2_labels": lambda: bare_loop(divided, in_update(0, [unlabelled])),
        "fsdp2_later": lambda: bare_loop(divided, in_update(1, [usual, unlabelled])),
        "fsdp2_unread": lambda: bare_loop(divided, in_update(1, [unread])),
        "fsdp2_none": lambda: bare_loop(divided, in_update(0, [])),
        "fsdp2_start": lambda: bare_loop(divided, lambda update: [told], model=untold),
    }


def by_transformers(rank, folder):
    rows = causal()["input_ids"].repeat(4, 1)
    batches = []

    def collate(features):
        batches.append(features)
        made = {key: torch.stack([row[key] for row in features]) for key in features[0]}
        refused = rank == 1 and len(batches) > 2
        return made | (
            {"attention_mask": torch.ones(made["labels"].shape).long()} if refused else {}
        )

    DistillationTrainer(
        model=student(),
        losses=[PLAIN],
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        data_collator=collate,
        args=transformers.TrainingArguments(
            str(folder / "trainer"),
            max_steps=3,
            per_device_train_batch_size=2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        ),
    ).train()


def main(folder):
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    ways = by_bare_loops(rank) | {"transformers": lambda: by_transformers(rank, folder)}
    for name, way in ways.items():
        try:
            way()
            line = "not refused"
        except InputError as error:
            line = str(error)
        (folder / f"{name}.{rank}").write_text(line)
        dist.barrier()
    os._exit(0)  # past what the ended trainings still hold


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(Path(sys.argv[1]))
