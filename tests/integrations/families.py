"""Small random Transformers models of each family, and inputs for them."""

import torch
import transformers

from fastkd.integrations.distillation import Distillation
from fastkd.losses import CrossEntropy

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
B, TS, TT, VOCABULARY = 3, 7, 5, 19
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
ONE_STACK = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
FAMILIES = {
    "marian": ("MarianConfig", "MarianMTModel", SEQ2SEQ),
    "m2m100": ("M2M100Config", "M2M100ForConditionalGeneration", SEQ2SEQ),
    "bart": ("BartConfig", "BartForConditionalGeneration", SEQ2SEQ),
    "bert": ("BertConfig", "BertForMaskedLM", ONE_STACK),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**ONE_STACK, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**ONE_STACK, "num_key_value_heads": 2}),
}


def build(family, implementation="sdpa", **changes):
    torch.manual_seed(0)
    config_class, model_class, settings = FAMILIES[family]
    config = getattr(transformers, config_class)(
        **{**settings, **changes}, attn_implementation=implementation
    )
    model = getattr(transformers, model_class)._from_config(
        config, attn_implementation=implementation
    )
    # Sharper than at the start, so that the maps differ from uniform ones.
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def padded(lengths, time, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (len(lengths), time), generator=generator)
    mask = (torch.arange(time) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def inputs_of(family):
    ids, mask = padded((7, 4, 6), TS, 1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if FAMILIES[family][2] is SEQ2SEQ:
        target, target_mask = padded((5, 2, 3), TT, 2)
        inputs |= {"decoder_input_ids": target, "decoder_attention_mask": target_mask}
    return inputs | ({} if family == "bert" else {"use_cache": False})


def labelled(family, rows=slice(None)):
    """The inputs with the labels in place of the decoder's inputs; those of some of the rows."""
    inputs = inputs_of(family)
    inputs.pop("use_cache", None)
    if "decoder_input_ids" in inputs:
        target, mask = inputs.pop("decoder_input_ids"), inputs.pop("decoder_attention_mask")
    else:
        target, mask = inputs["input_ids"], inputs["attention_mask"]
    inputs["labels"] = target.masked_fill(mask == 0, -100)
    return {name: value[rows] for name, value in inputs.items()}


def teacher_and_student(family, **changes):
    """Two models that differ."""
    teacher, student = build(family), build(family, **changes)
    torch.manual_seed(5)
    for parameter in student.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return teacher, student


def without_dropout(model):
    for module in model.modules():
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def of(model_class, settings):
    """A model of a class, or of a class of Transformers by its name, far from uniform."""
    torch.manual_seed(0)
    if isinstance(model_class, str):
        model_class = getattr(transformers, model_class)
    config = model_class.config_class(**settings)
    model = model_class(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


def causal(rows=3, time=7, seed=0):
    """Inputs of a model of one stack, with labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, time), generator=generator)
    return {"input_ids": ids, "labels": ids.clone()}


def own_and_ours(model, inputs):
    """(the model's own loss, ours, our components) without smoothing."""
    loss, components = Distillation(model, [PLAIN])(model, inputs)
    return model(**inputs).loss, loss, components
