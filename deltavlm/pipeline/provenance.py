"""Provenance of an output (inputs, model, questions, options, versions), and settings of a journal."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import rasterio

from deltavlm.geo.pair import ReadOptions
from deltavlm.messages import redact, redact_address
from deltavlm.model.interface import ModelFacts
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.version import __version__

__all__ = ["job_settings", "journal_settings", "library_versions", "provenance"]

_LIBRARIES = (
    *("numpy", "pillow", "rasterio", "pyproj", "shapely", "pyogrio"),
    *("torch", "timm", "transformers", "tokenizers", "safetensors", "sentencepiece"),
)


def library_versions() -> dict[str, str]:
    """Versions of deltavlm, Python and the libraries that answers depend on."""
    versions = {"deltavlm": __version__, "python": platform.python_version()}
    versions |= {name: found for name in _LIBRARIES if (found := _installed_version(name))}
    return versions | {"gdal": rasterio.__gdal_version__}


@cache
def _installed_version(name: str) -> str | None:
    """Version of a package, None where it is not installed; its metadata are read once in a process."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def provenance(
    job: AnalyzeJob, model: ModelFacts, inputs: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Provenance of an output as plain values, ready for JSON.

    `inputs` are those of its only pair, `PairReader.provenance()`. An output of a list has the name of the
    list and how it was read; the inputs of each pair are in its layer `pairs`.
    """
    if inputs is None:
        source: dict[str, object] = {"pairs": job.pairs.name, "reading": _plain(job.read)}
    else:
        source = {"inputs": inputs}
    asked = {
        "chip_px": model.chip_px,
        "training_gsd_m": model.training_gsd_m,
        "phrasebook": model.phrasebook,
    }
    return {
        "tool": "deltavlm analyze",
        **source,
        "model": _model(model) | asked | {"device": model.device},
        "questions": [asdict(spec) for spec in job.questions],
        "options": asdict(job.options),
        "versions": library_versions(),
        **job.change_record(),
    }


def journal_settings(job: AnalyzeJob, model: ModelFacts) -> dict[str, object]:
    """Settings that must be equal for a run to be resumed; pairs and questions are compared separately."""
    settings = job_settings(job)
    if model.details.get("decoding", {}).get("consistent"):  # captions follow the threshold
        settings["threshold"] = job.options.threshold
    return {**settings, "model": _model(model)}


def job_settings(job: AnalyzeJob) -> dict[str, object]:
    """`journal_settings` without the model, which is not known before it is loaded."""
    options = asdict(job.options)
    for key in ("limit", "on_error", "batch_size"):
        del options[key]
    if not job.options.cascade:  # then it decides nothing but `changed`, which is made of the stored scores
        del options["threshold"]
    evidence = {"evidence": True} if job.evidence else {}
    return {"reading": _plain(job.read), "options": options, "deltavlm": __version__, **evidence}


def _plain(read: ReadOptions) -> dict[str, object]:
    values = {each.name: getattr(read, each.name) for each in fields(read)}
    nodata = read.nodata
    masks = ("before_cloud_mask", "after_cloud_mask")
    return {
        **values,
        **{name: values[name] and redact_address(values[name]) for name in masks},
        "nodata": nodata if nodata is None or math.isfinite(nodata) else str(nodata),  # as JSON has no NaN
        "aoi": None if read.aoi is None else redact(str(read.aoi)),
    }


def _model(model: ModelFacts) -> dict[str, object]:
    return {"name": model.name, "fingerprint": model.fingerprint, **model.details}
