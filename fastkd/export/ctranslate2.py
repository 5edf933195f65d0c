"""A run's model as a folder that CTranslate2 loads, for deployment."""

import shutil
import tempfile
from pathlib import Path

from fastkd.errors import InputError
from fastkd.export.transformers import export_transformers
from fastkd.runs.folder import RunFolder


def export_ctranslate2(
    run: RunFolder, folder: Path, checkpoint: str = "best", quantization: str | None = None
) -> None:
    """Converts the Transformers layout with CTranslate2's own converter.

    The sentencepiece models lie beside the weights as `source.spm` and `target.spm`.
    """
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        raise InputError(
            "--to ctranslate2: needs the package ctranslate2: pip install 'fastkd[ctranslate2]'"
        ) from None
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "transformers"
        export_transformers(run, source, checkpoint)
        partial = folder.with_name(f".{folder.name}.partial")
        converter = TransformersConverter(
            str(source), copy_files=["source.spm", "target.spm"], load_as_float16=False
        )
        converter.convert(str(partial), quantization=quantization, force=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
