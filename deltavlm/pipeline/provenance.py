"""Where a result comes from: written into every output, so that it can be made again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import rasterio

from deltavlm import __version__
from deltavlm.geo.pair import PairReader
from deltavlm.model.interface import ChangeModel
from deltavlm.pipeline.analyze import AnalyzeOptions
from deltavlm.tasks.questions import QuestionSpec

__all__ = ["provenance", "versions"]

_RECORDED = (
    *("numpy", "pillow", "rasterio", "pyproj", "shapely", "pyogrio"),
    *("torch", "timm", "transformers", "tokenizers", "safetensors", "sentencepiece"),
)


def versions() -> dict[str, str]:
    """Versions of deltavlm, Python and the libraries that the answers depend on."""
    found = {"deltavlm": __version__, "python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"gdal": rasterio.__gdal_version__}


def provenance(
    reader: PairReader, model: ChangeModel, specs: Sequence[QuestionSpec], options: AnalyzeOptions
) -> dict[str, object]:
    """Inputs, model, questions, options and versions as plain values, ready for JSON."""
    return {
        "tool": "deltavlm analyze",
        "inputs": reader.provenance(),
        "model": {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "device": model.device,
            **model.details,
        },
        "questions": [asdict(spec) for spec in specs],
        "options": asdict(options),
        "versions": versions(),
    }
