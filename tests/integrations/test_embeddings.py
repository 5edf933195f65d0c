"""Embeddings of a weight that FSDP2 divides with the output projection, in one process."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("transformers", minversion="5.1")

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from benchmarks.models import tiny
from fastkd.integrations import accelerate
from fastkd.integrations.distillation import Distillation
from fastkd.integrations.sharded import beside, divide, divide_head, holders
from fastkd.integrations.unwrapped import projection_of
from fastkd.losses import CrossEntropy, WordKD
from tests.integrations.families import build, causal, labelled


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def trained(student, teacher, inputs, divided=lambda model: model):
    """Loss, gradients by name, and how often FSDP2 gathered the projection."""
    divided(student)
    distillation = Distillation(student, [CrossEntropy(weight=0.5), WordKD(weight=0.5)], teacher)
    counts = distillation.counts([inputs])
    called = []
    head = student.get_output_embeddings()
    if isinstance(head, FSDPModule):  # once the judge has had its passes
        unit = head._get_fsdp_state()._fsdp_param_group
        unit.unshard = lambda *given: called.append(given)
    loss, _ = distillation(student, inputs, counts)
    loss.backward()
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    whole = {name: getattr(g, "full_tensor", lambda g=g: g)() for name, g in gradients.items()}
    return loss.detach(), whole, called


@pytest.mark.parametrize("family", ["marian", "bart", "m2m100", "qwen2"])
def test_a_tied_projection_is_never_whole_in_training(mesh, family):
    """Scaled embeddings, several of one weight, and their rows of padding."""
    inputs = causal() if family == "qwen2" else labelled(family)
    tied = {"tie_word_embeddings": True}
    student, teacher = build(family, **tied), build(family)
    expected = trained(copy.deepcopy(student), copy.deepcopy(teacher), inputs)
    found = trained(student, teacher, inputs, lambda model: divide(model, mesh))
    assert beside(student.get_output_embeddings()) is not None
    assert found[2] == []
    torch.testing.assert_close(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_types_are_those_of_the_unit(mesh):
    model = build("qwen2", tie_word_embeddings=True).train()
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32)
    divide(model, mesh, mp_policy=policy)
    distillation = Distillation(model, [CrossEntropy()])
    distillation.counts([causal()])
    seen = []
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(lambda m, given: seen.append(given[0].dtype), prepend=True)
    with distillation._models[0].head.taking():
        model(**{name: value for name, value in causal().items() if name != "labels"})
    assert seen == [torch.float32]
    assert model.get_output_embeddings().weight.dtype == torch.float32


def test_ids_out_of_range_are_told(mesh):
    model = build("qwen2", tie_word_embeddings=True).train()
    divide(model, mesh)
    distillation = Distillation(model, [CrossEntropy()])
    distillation.counts([causal()])
    inputs = causal()
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, 0] = 1000
    with pytest.raises(RuntimeError, match="out of its range"):
        distillation(model, inputs)


@pytest.mark.parametrize("name", ["bert", "blip", "blip with a bias apart"])
def test_a_projection_whose_bias_is_shared_stays_with_the_rest(mesh, name):
    """And so do layers that share a weight; BLIP's projection is found in its part for text."""
    if name == "bert":
        student, inputs = build("bert", tie_word_embeddings=True), labelled("bert")
    else:
        student = tiny.build("BlipForConditionalGeneration").requires_grad_(True)
        inputs = tiny.inputs_of("vision", student)
    if name == "blip with a bias apart":
        head = student.text_decoder.cls.predictions
        head.bias = torch.nn.Parameter(head.bias.detach().clone())
    apart = len(holders(student, projection_of(student).bias)) == 1
    assert apart or name != "blip with a bias apart"
    teacher = copy.deepcopy(student)
    expected = trained(copy.deepcopy(student), copy.deepcopy(teacher), inputs)
    found = trained(student, teacher, inputs, lambda model: divide(model, mesh))
    assert isinstance(projection_of(student), FSDPModule) == apart
    torch.testing.assert_close(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for key, gradient in expected[1].items():
        torch.testing.assert_close(found[1][key], gradient, msg=key)


def test_mixed_precision_of_accelerate_with_a_projection_that_a_part_tells(mesh):
    plugin = SimpleNamespace(
        fsdp_version=2,
        cpu_ram_efficient_loading=False,
        reshard_after_forward=True,
        cpu_offload=OffloadPolicy(),
        mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16),
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="bf16", torch_device_mesh=None
    )
    model = tiny.build("BlipForConditionalGeneration").requires_grad_(True).bfloat16()
    accelerate.divide_head(model, accelerator)
    assert projection_of(model).weight.dtype == torch.float32


@pytest.mark.parametrize("change", ["max_norm", "hooked", "other"])
def test_what_is_more_than_a_lookup_stays_with_the_rest(mesh, change):
    model = build("qwen2", tie_word_embeddings=True)
    embeddings = model.get_input_embeddings()
    if change == "max_norm":
        embeddings.max_norm = 1.0
    if change == "other":
        model.model.norm.extra = embeddings.weight
    divide_head(model, mesh)
    fully_shard(model, mesh=mesh)
    if change == "hooked":
        embeddings.register_forward_hook(lambda *given: None)
    assert beside(model.get_output_embeddings()) is None
    assert isinstance(embeddings, FSDPModule) == (change == "hooked")


def test_dividing_a_head_again_changes_nothing(mesh):
    model = build("llama")
    divide_head(model, mesh)
    weight = model.lm_head.weight
    divide_head(model, mesh)
    assert model.lm_head.weight is weight
