"""Transformers' Trainer with what Accelerate makes of `fsdp=True`, as one of WORLD_SIZE processes.

python -m tests.integrations.sharded_trainer FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from fastkd.integrations.sharded import beside
from fastkd.integrations.trainer import DistillationTrainer
from tests.integrations.sharded import LOSSES, Case, batch, made

TIED = {"losses": "tie_a2d", "family": "marian", "tied": True}
PARTS = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}


def divided_on_a_cpu():
    """Accelerate divides on a CPU too, where it would take DistributedDataParallel instead."""
    from accelerate import state
    from accelerate.utils import DistributedType

    usual = state.AcceleratorState.__init__

    def init(self, *arguments, fsdp_plugin=None, **keywords):
        usual(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
        if getattr(self, "fsdp_plugin", None) is not None:
            self.distributed_type = DistributedType.FSDP

    state.AcceleratorState.__init__ = init


def rows():
    """One a batch."""
    found = []
    for number in range(16):
        drawn = batch(number)
        length = int(drawn["attention_mask"][0].sum())
        found.append({key: value[0, :length].tolist() for key, value in drawn.items()})
    return found


def collate(features):
    pads = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        key: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(f[key]) for f in features], batch_first=True, padding_value=value
        )
        for key, value in pads.items()
    }


class InOrder(DistillationTrainer):
    def _get_train_sampler(self, *arguments):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(folder, size, losses="a2d", family="llama", tied=False, **settings):
    case = Case(family, "accelerate", losses, tied)
    # Whose updates have the size of their gradients: those of keys' biases are roundings alone.
    optimizer = {"optim": "sgd", "learning_rate": 0.1} if tied else {"optim": "adamw_torch"}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4 // size,
        **{"learning_rate": 1e-2, **optimizer},
        lr_scheduler_type="constant",
        max_steps=4,
        logging_steps=1,
        max_grad_norm=0.5,
        save_strategy="steps",
        save_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    torch.manual_seed(2)
    made_of = InOrder(
        model=made(case, 1),
        args=arguments,
        train_dataset=rows(),
        data_collator=collate,
        losses=LOSSES[losses],
        teacher=made(case, 0),
    )
    torch.manual_seed(2)
    for parameter in made_of.distillation.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made_of


def main(folder):
    size = int(os.environ["WORLD_SIZE"])
    divided_on_a_cpu()
    whole = trainer(folder / "whole", size, fsdp=True, fsdp_config={"version": 2})
    whole.train()
    assert whole.is_fsdp_enabled
    assert {type(m).__name__ for m in (whole.model, whole.distillation.teacher)} == {
        "FSDPLlamaForCausalLM"
    }
    whole.save_model(str(folder / "saved"))
    tied = trainer(folder / "tied", size, **TIED, fsdp=True, fsdp_config={"version": 2})
    tied.train()
    assert beside(tied.model.get_output_embeddings()), "the projection is no unit with embeddings"
    tied.save_model(str(folder / "saved_tied"))
    resumed = trainer(folder / "whole", size, fsdp=True, fsdp_config={"version": 2})
    resumed.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-2"))
    resumed.save_model(str(folder / "resumed"))
    parts = trainer(folder / "parts", size, fsdp=True, fsdp_config=PARTS)
    parts.train()
    again = trainer(folder / "parts", size, fsdp=True, fsdp_config=PARTS)
    again.train(resume_from_checkpoint=str(folder / "parts" / "checkpoint-2"))
    again.save_model(str(folder / "from_parts"))  # what is learned; models stay in parts
    options = StateDictOptions(full_state_dict=True)
    weights = get_model_state_dict(again.model, options=options)
    if whole.args.process_index == 0:
        student = {name: t for name, t in weights.items() if "fastkd" not in name}
        save_file(student, folder / "from_parts" / "model.safetensors")
    if whole.args.process_index == 0:
        torch.save(whole.state.log_history, folder / "log.pt")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(Path(sys.argv[1]))
