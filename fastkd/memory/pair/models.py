"""What a model of Transformers may be told by, and a function that makes it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from fastkd.errors import InputError
from fastkd.reading import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MakesModel = Callable[[], nn.Module]
# Or the folder of one, its config.json, a configuration of Transformers, or the model itself.
Model: TypeAlias = "MakesModel | str | Path | PreTrainedConfig | nn.Module"

FILE = "config.json"  # of a Transformers model's folder
# How classes are named that predict words; others of a model's family do not.
_WITH_HEAD = ("ForCausalLM", "ForMaskedLM", "ForConditionalGeneration", "LMHeadModel", "MTModel")
_AUTO = {  # by whether there is an encoder, the first that knows the configuration
    True: ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq", "AutoModelForImageTextToText"),
    False: ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForImageTextToText"),
}


def maker_of(key: str, model: Model) -> MakesModel:
    """A function that makes `model`, which it is where it is a function.

    Of a file or configuration the class is the one that it names, else the usual one with a head
    of its kind. A model is copied: on the "meta" device without its data.

    key: names it in a complaint
    """
    import transformers

    if isinstance(model, nn.Module):
        return lambda: _copied(model)
    if isinstance(model, str | Path):
        return _made_of(key, _read(key, Path(model)))
    if isinstance(model, transformers.PreTrainedConfig):
        return _made_of(key, model)
    if not callable(model):
        raise InputError(
            f"{key}: expected a function that makes a model, a folder with {FILE}, a configuration "
            f"of Transformers or a model, not {type(model).__name__}"
        )
    made: MakesModel = model
    return made


def _read(key: str, path: Path) -> Any:
    """The configuration in a folder or file."""
    import transformers

    file = path / FILE if path.is_dir() else path
    try:
        return transformers.AutoConfig.for_model(**json.loads(read_text(file)))
    except OSError as error:
        raise InputError(f"{key}: {file}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{key}: {file}: no configuration of Transformers: {error}") from None


def _made_of(key: str, config: Any) -> MakesModel:
    import transformers

    for name in getattr(config, "architectures", None) or ():
        own = getattr(transformers, name, None)
        if own is not None and name.endswith(_WITH_HEAD):
            return lambda: own._from_config(config)
    for name in _AUTO[bool(config.is_encoder_decoder)]:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return lambda: auto.from_config(config)
    raise InputError(f"{key}: {config.model_type}: Transformers has no language model of this kind")


def _copied(model: nn.Module) -> nn.Module:
    """With its data, or without where tensors are made on the "meta" device."""
    without = torch.empty(0).device.type == "meta"
    known: dict[int, Any] = {}
    if without:
        for tensor in (*model.parameters(), *model.buffers()):
            known[id(tensor)] = _empty(tensor)
    return copy.deepcopy(model, known)


def _empty(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty
