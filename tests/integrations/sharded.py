"""What several processes compute with models that FSDP2 divides, beside what one computes alone.

python -m tests.integrations.sharded FOLDER [PART_OF_NAMES], as one of WORLD_SIZE processes:
FOLDER/found.json holds, by case, the largest difference of loss, norm and gradients of each update
and of the files that are saved at the end, relative to its size.
"""

import copy
import functools
import itertools
import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from fastkd.integrations.distillation import Distillation
from fastkd.integrations.sharded import divide_head, whole_state
from fastkd.losses import A2D, CrossEntropy, HiddenStates, TieKD, WordKD
from tests.functional import divided_weights

UPDATES = 2
VOCABULARY = 37  # no multiple of the processes
PART = "learned_beside"
LOSSES = {
    "word_kd": [CrossEntropy(label_smoothing=0.1), WordKD()],
    "tie_kd": [CrossEntropy(label_smoothing=0.1), TieKD(iterations=3, rank_weight=1.0)],
    "a2d": [CrossEntropy(), WordKD(), A2D(normalization="row"), HiddenStates()],
    "tie_a2d": [CrossEntropy(), TieKD(iterations=2), A2D(normalization="mixture"), HiddenStates()],
}
LAYOUTS = ("accelerate", "torchtitan", "root_resharded", "head_alone", "tail_resharded")


@dataclass(frozen=True)
class Case:
    """family: of the models; layout: what is a unit of FSDP2; hybrid: replicated in half the mesh

    summed: whether gradients are not divided by the number of processes, as torchtitan's
        `disable_fsdp_gradient_division` asks of each unit
    part: whether what is learned beside the student is a part of it, and else exchanged by hand
    """

    family: str
    layout: str
    losses: str
    tied: bool = False
    policy: str = "float32"
    hybrid: bool = False
    summed: bool = False
    part: bool = False
    lora: bool = False
    accumulation: int = 1

    @property
    def name(self):
        usual = asdict(Case("", "", ""))
        told = {k: v for k, v in asdict(self).items() if v != usual[k]}
        return ",".join(k if v is True else f"{k}={v}" for k, v in told.items())

    @property
    def alone(self):
        """What one process has to compute only once for all layouts."""
        return replace(self, layout="root_resharded", hybrid=False, summed=False)


def cases(size, which):
    found = []
    for family, layout, losses, tied in itertools.product(
        ("llama", "marian"), LAYOUTS, LOSSES, (False, True)
    ):
        if family == "llama" and "tie" in losses:
            continue  # one pass only
        if tied and layout == "tail_resharded":
            continue  # a unit that holds the embeddings too is the whole model's
        found.append(Case(family, layout, losses, tied))
    for layout in LAYOUTS:
        found.append(Case("marian", layout, "tie_a2d", part=True))
        found.append(Case("llama", layout, "a2d", summed=True))
        found.append(Case("llama", layout, "a2d", policy="bfloat16"))
        found.append(Case("llama", layout, "a2d", lora=True))
        found.append(Case("llama", layout, "a2d", accumulation=2))
        if size == 4:
            found.append(Case("llama", layout, "a2d", hybrid=True))
            found.append(Case("marian", layout, "tie_kd", hybrid=True, summed=True))
    tied = [case for case in found if case.layout == "head_alone" and not case.tied]
    found += [replace(c, tied=True) for c in tied if replace(c, tied=True) not in found]
    return [case for case in found if which in case.name]


def made(case, seed):
    """A model of the case, equal in all processes and layouts."""
    # Copied, as making one takes longer than what is tested.
    return copy.deepcopy(_made(case.family, case.tied, case.lora and seed > 0, seed))


@functools.cache
def _made(family, tied, lora, seed):
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "pad_token_id": 0}
    if family == "llama":
        config = transformers.LlamaConfig(
            **shape,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.MarianConfig(
            **shape,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            eos_token_id=1,
            bos_token_id=2,
            decoder_start_token_id=2,
            dropout=0.0,
            tie_word_embeddings=tied,
        )
        model = transformers.MarianMTModel(config)
        if not tied:
            head = torch.nn.Linear(16, VOCABULARY, bias=False)
            model.set_output_embeddings(head)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if lora:
        import peft

        target = ["q_proj", "v_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=target))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(number):
    random = torch.Generator().manual_seed(100 + number)
    length = 6 + number % 3
    ids = torch.randint(3, VOCABULARY, (3, length), generator=random)
    lengths = torch.randint(3, length + 1, (3, 1), generator=random)
    mask = (torch.arange(length) < lengths).long()
    ids = ids * mask
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def shard(case, model, mesh):
    """As the layout's namesake divides a model."""
    policy = {}
    if case.policy == "bfloat16":
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policy = {"mp_policy": mixed}
    inner = model.get_base_model() if case.lora and hasattr(model, "get_base_model") else model
    if case.family == "llama":
        layers, norm = inner.model.layers, [inner.model.norm]
    else:
        layers, norm = [*inner.model.encoder.layers, *inner.model.decoder.layers], []
    head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
    for layer in layers:
        fully_shard(layer, mesh=mesh, **policy)
    if case.layout == "accelerate":
        shared = [m for m in inner.modules() if getattr(m, "weight", None) is head.weight]
        tail = [*norm, *shared]
        if not case.tied:
            fully_shard(embeddings, mesh=mesh, **policy)
        fully_shard(tail, mesh=mesh, reshard_after_forward=False, **policy)
    elif case.layout == "head_alone":
        divide_head(inner, mesh, reshard_after_forward=True, **policy)
    elif case.layout == "tail_resharded":
        fully_shard([*norm, head], mesh=mesh, reshard_after_forward=True, **policy)
    root = {"reshard_after_forward": True} if case.layout == "root_resharded" else {}
    fully_shard(model, mesh=mesh, **root, **policy)
    for module in model.modules():
        if isinstance(module, FSDPModule) and case.summed:
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo multiplies nothing
    return model


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trained(case, folder, mesh=None, size=1, rank=0):
    """By update: loss, norm, whole gradients by name; last what is saved; of `size` processes."""
    student, teacher = made(case, 1), made(case, 0)
    losses = LOSSES[case.losses]
    if case.policy == "bfloat16" or size > 1:
        shard(case, teacher, mesh)
    if not case.part and (case.policy == "bfloat16" or size > 1):
        shard(case, student, mesh)
    distillation = Distillation(student, losses, teacher)
    torch.manual_seed(2)
    for parameter in distillation.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if case.part:
        setattr(student, PART, distillation)
        if size > 1:
            shard(case, student, mesh)
    learned = [] if case.part else [*distillation.named_parameters()]
    named = dict([*learned, *student.named_parameters()])
    trains = {name: p for name, p in named.items() if p.requires_grad}
    optimizer = torch.optim.SGD(trains.values(), lr=0.05)
    history = []
    for update in range(UPDATES):
        everyone = [batch(4 * update + i) for i in range(4)]
        mine = everyone[rank::size]
        if case.accumulation == 1:
            mine = [joined(mine)] if len(mine) > 1 else mine
        counts = distillation.counts(mine)
        if size > 1:
            dist.all_reduce(counts)
        total = torch.zeros(())
        for piece in mine:
            loss, _ = distillation(student, piece, counts)
            (loss * (1 if case.summed else size)).backward()
            total += loss.detach()
        if size > 1:
            dist.all_reduce(total)
            for _, parameter in learned:
                dist.all_reduce(parameter.grad)
                parameter.grad /= 1 if case.summed else size
        gradients = {n: whole(p.grad).clone() for n, p in trains.items() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        history.append({"loss": total, "norm": norm, **gradients})
        optimizer.step()
        optimizer.zero_grad()
    return [*history, saved(case, student, distillation, folder, rank)]


def saved(case, student, distillation, folder, rank):
    """What the files hold that the first process writes, by file and name."""
    state = whole_state(student)
    learned = distillation.state_dict()
    if rank:
        return {}
    folder.mkdir()
    if case.part:
        prefix = f"{PART}."
        learned = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        state = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    student.save_pretrained(folder, state_dict=state)
    save_file(learned, folder / "learned.safetensors")
    files = sorted(folder.glob("*.safetensors"))
    return {f"{f.name}:{name}": t for f in files for name, t in load_file(f).items()}


def joined(batches):
    """Several as one, padded to the longest."""
    length = max(b["labels"].shape[1] for b in batches)
    pads = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        key: torch.cat(
            [
                torch.nn.functional.pad(b[key], (0, length - b[key].shape[1]), value=pad)
                for b in batches
            ]
        )
        for key, pad in pads.items()
    }


def difference(found, expected):
    """The largest, relative to the largest number of each tensor."""
    if found.keys() != expected.keys():
        return f"{found.keys() ^ expected.keys()}"
    if not found:  # what another process saves
        return 0.0
    return max(
        float((found[k] - v).abs().max() / v.abs().max().clamp(min=1e-3))
        for k, v in expected.items()
    )


def main(folder, which=""):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    line = init_device_mesh("cpu", (size,))
    alone = init_device_mesh("cpu", (size, 1), mesh_dim_names=("apart", "alone"))["alone"]
    hybrid = (
        None
        if size < 4
        else init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copies", "parts"))
    )
    results = divided_weights.differences(line, rank, size)
    if hybrid is not None:
        results |= divided_weights.differences(hybrid, rank, size)
    computed = {}
    for number, case in enumerate(cases(size, which)):
        try:
            if case.alone not in computed:
                one = folder / f"alone-{rank}-{number}"
                computed[case.alone] = trained(case.alone, one, alone)
            expected = computed[case.alone]
            if rank:
                expected = [*expected[:-1], {}]
            mesh = hybrid if case.hybrid else line
            found = trained(case, folder / f"{size}-{number}", mesh, size, rank)
            results[case.name] = [difference(*both) for both in zip(found, expected, strict=True)]
        except Exception as error:
            told = traceback.format_exc().strip().splitlines()[-8:]
            results[case.name] = [f"{type(error).__name__}: {error}", *told]
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(results, indent=1))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main(Path(sys.argv[1]), *sys.argv[2:])
