"""Where a result comes from: written into every output, so that it can be made again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version

import rasterio

from deltavlm import __version__
from deltavlm.geo.location import file_identity
from deltavlm.geo.pair import PairReader, ReadOptions
from deltavlm.model.interface import ModelFacts
from deltavlm.pipeline.analyze import AnalyzeOptions
from deltavlm.tasks.questions import QuestionSpec

__all__ = ["pairs_provenance", "pairs_settings", "provenance", "settings", "versions"]

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
    reader: PairReader, model: ModelFacts, specs: Sequence[QuestionSpec], options: AnalyzeOptions
) -> dict[str, object]:
    """Inputs, model, questions, options and versions as plain values, ready for JSON."""
    return {
        "tool": "deltavlm analyze",
        "inputs": reader.provenance(),
        "model": _described(model) | _learned(model) | {"device": model.device},
        "questions": [asdict(spec) for spec in specs],
        "options": asdict(options),
        "versions": versions(),
    }


def settings(reader: PairReader, model: ModelFacts, options: AnalyzeOptions) -> dict[str, object]:
    """All that an answer depends on, questions apart: it must be the same where a run is gone on with."""
    return {
        "inputs": reader.provenance(),
        "files": [file_identity(view.source.location) for view in reader.views],
        **_asking(model, options),
    }


def pairs_provenance(
    source: str,
    read: ReadOptions,
    model: ModelFacts,
    specs: Sequence[QuestionSpec],
    options: AnalyzeOptions,
) -> dict[str, object]:
    """As `provenance`, for a run over the pairs of the list `source`; more on each is in their layer."""
    return {
        "tool": "deltavlm analyze",
        "pairs": source,
        "reading": _reading(read),
        "model": _described(model) | _learned(model) | {"device": model.device},
        "questions": [asdict(spec) for spec in specs],
        "options": asdict(options),
        "versions": versions(),
    }


def pairs_settings(read: ReadOptions, model: ModelFacts, options: AnalyzeOptions) -> dict[str, object]:
    """As `settings`, for a run over many pairs, whose files are compared one by one."""
    return {"reading": _reading(read), **_asking(model, options)}


def _asking(model: ModelFacts, options: AnalyzeOptions) -> dict[str, object]:
    asked = asdict(options)
    for key in ("limit", "on_error", "batch_size"):
        del asked[key]
    return {"model": _described(model), "options": asked, "deltavlm": __version__}


def _reading(read: ReadOptions) -> dict[str, object]:
    """The options as plain values, ready for JSON."""
    told = {one.name: getattr(read, one.name) for one in fields(read)}
    return {**told, "aoi": None if read.aoi is None else str(read.aoi)}


def _learned(model: ModelFacts) -> dict[str, object]:
    """What it was trained on, for those who judge its answers later."""
    return {"chip_px": model.chip_px, "training_gsd_m": model.training_gsd_m}


def _described(model: ModelFacts) -> dict[str, object]:
    return {"name": model.name, "fingerprint": model.fingerprint, **model.details}
