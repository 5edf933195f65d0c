"""Checkpoints: folders of safetensors files that appear whole or not at all."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from fastkd.errors import Forbidden, InputError
from fastkd.files import replaced_folder, write_file
from fastkd.reading import read_text, sha256_of
from fastkd.tensors import read_tensors, write_tensors

META = "meta.json"
CHECKPOINT_FILES = (META, "*.safetensors", ".*.partial")


def write_checkpoint(
    folder: Path, groups: dict[str, dict[str, Tensor]], meta: dict[str, Any]
) -> None:
    """Writes `<group>.safetensors` for each group and `meta.json` with `meta` and checksums.

    The folder appears whole; one of the name that holds other files than a checkpoint's stays.
    """
    with replaced_folder(folder, CHECKPOINT_FILES) as new:
        checksums = {}
        for group, tensors in groups.items():
            file = new / f"{group}.safetensors"
            write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
            checksums[file.name] = sha256_of(file)
        write_meta(new, meta, checksums)


def write_meta(folder: Path, meta: dict[str, Any], checksums: dict[str, str]) -> None:
    """Writes `meta.json`, the last file of a checkpoint, or anew with another `meta`.

    checksums: of the other files, by their names
    """
    checked = {**checksums, META: _checksum_of(meta)}
    write_file(folder / META, json.dumps({**meta, "sha256": checked}, indent=1).encode())


def read_meta(folder: Path) -> dict[str, Any]:
    """The checkpoint's `meta`; InputError where it is damaged, Forbidden where it is unreadable."""
    try:
        meta = json.loads(read_text(folder / META))
    except PermissionError as error:
        raise Forbidden(f"{folder / META}: cannot be read: {error.strerror}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / META}: damaged or missing checkpoint: {error}") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("sha256"), dict):
        raise InputError(f"{folder / META}: damaged checkpoint: no checksums in it")
    described = {key: value for key, value in meta.items() if key != "sha256"}
    if meta["sha256"].get(META, _checksum_of(described)) != _checksum_of(described):
        raise InputError(f"{folder / META}: damaged checkpoint: not what its checksum says")
    return meta


def read_group(
    folder: Path, group: str, device: str = "cpu", meta: dict[str, Any] | None = None
) -> dict[str, Tensor]:
    """One group's tensors; InputError unless the file is what was written, and all finite.

    Forbidden where it may not be read: it may be whole.

    meta: the checkpoint's, where it is read already; the tensors are those that it tells of
    """
    file = folder / f"{group}.safetensors"
    expected = (read_meta(folder) if meta is None else meta)["sha256"].get(file.name)
    try:
        if expected != sha256_of(file):
            raise InputError(f"{file}: damaged: its checksum is not the one in {META}")
    except PermissionError as error:
        raise Forbidden(f"{file}: cannot be read: {error.strerror}") from None
    except OSError as error:
        raise InputError(f"{file}: damaged or missing: {error}") from None
    return read_tensors(file, device)


def _checksum_of(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()
