"""Diagnose an installation: packages, runtimes, devices, GDAL and PROJ, questions, the shipped model."""

from __future__ import annotations

import logging
import os
import platform
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Literal

from deltavlm.errors import ConfigError, DeltaVLMError
from deltavlm.extras import TORCH_PACKAGES, install_command
from deltavlm.messages import pluralize
from deltavlm.version import __version__

__all__ = ["Finding", "check_proj_variables", "check_torchvision", "diagnose", "package_versions"]

logger = logging.getLogger(__name__)

REQUIRED_PACKAGES = (
    *("numpy", "scipy", "rasterio", "pyproj", "shapely", "pyogrio", "pyarrow", "geopandas"),
    *("openvino", "tokenizers", "safetensors", "huggingface-hub", "pillow", "typer", "rich", "pyyaml"),
)
PROJ_VARIABLES = ("PROJ_DATA", "PROJ_LIB")


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check; `remedy` says what to do where the status is not ok."""

    name: str
    status: Literal["ok", "warning", "broken"]
    detail: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Run all checks. A check that raises is a finding too; its traceback is logged at level DEBUG."""
    return [finding for check in CHECKS for finding in _run_check(check)]


def _run_check(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:
        logger.debug("check failed", exc_info=error)
        name = check.__name__.removeprefix("_check_").replace("_", " ")
        yield Finding(name, "broken", _summarize(error), "reinstall deltavlm; -vv shows the traceback")


def _summarize(error: BaseException) -> str:
    """Type and first line of an exception."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def package_versions() -> dict[str, str | None]:
    """Versions of deltavlm, Python, and the packages required and of the extra torch; None where one is not
    installed."""
    return {"deltavlm": __version__, "python": platform.python_version()} | {
        name: _version(name) for name in (*REQUIRED_PACKAGES, *TORCH_PACKAGES)
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_packages() -> Iterator[Finding]:
    versions = package_versions()
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Finding("versions", "ok", f"{installed}; {platform.platform()}")
    for name in REQUIRED_PACKAGES:
        if versions[name] is None:
            yield Finding(name, "broken", "not installed", f"pip install {name}")


def _check_openvino() -> Iterator[Finding]:
    from deltavlm.model.openvino import cache_folder, import_openvino

    core = import_openvino().Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    processor = core.get_property("CPU", "FULL_DEVICE_NAME")
    instructions = f"{'with' if has_bf16 else 'without'} instructions for bf16"
    yield Finding("openvino", "ok", f"nano runs on it without torch; {processor}, {instructions}")
    if cache_folder() is None:
        yield Finding(
            "cache",
            "warning",
            "compiled graphs cannot be stored, so that each process compiles for some seconds",
            "set OV_CACHE_DIR to a folder that can be written",
        )


def _check_torch() -> Iterator[Finding]:
    missing = [name for name in TORCH_PACKAGES if util.find_spec(name) is None]
    if missing:
        remedy = install_command("torch")
        if "torch" in missing:
            uses = "nano and openai: models on a CPU run without it, all other models and training do not"
            yield Finding("torch", "ok", f"not installed: {uses}; {remedy}")
        else:
            yield Finding("torch", "broken", f"{', '.join(missing)} not installed", remedy)
        return
    failure = _import_error("torch")
    if failure is not None:
        remedy = "pip install --force-reinstall torch torchvision"
        yield Finding("torch", "broken", _summarize(failure), remedy)
        return
    yield check_torchvision(
        _version("torch"),
        _version("torchvision"),
        pinned_torch(metadata.requires("torchvision") or []),
        _import_error("torchvision"),
    )


def _import_error(package: str) -> Exception | None:
    try:
        import_module(package)
    except Exception as error:  # a library of the wrong version can fail with anything
        return error
    return None


def check_torchvision(
    torch: str | None, torchvision: str | None, required_torch: str | None, failure: BaseException | None
) -> Finding:
    """Check that torch and torchvision, by their versions, fit together.

    `required_torch` is the version that torchvision pins, `failure` what importing torchvision raised.
    """
    remedy = (
        "install the two together and from the same index: pip install --force-reinstall torch torchvision "
        "(a CPU-only torch needs the CPU-only torchvision)"
    )
    pair = f"torch {torch}, torchvision {torchvision}"
    if failure is not None:
        return Finding(
            "torchvision",
            "broken",
            f"{pair} do not fit together ({_summarize(failure)}): timm and transformers cannot be imported",
            remedy,
        )
    if required_torch is not None and torch is not None and torch.partition("+")[0] != required_torch:
        return Finding(
            "torchvision", "warning", f"{pair}: this torchvision requires torch {required_torch}", remedy
        )
    return Finding("torchvision", "ok", f"{pair} fit together")


def pinned_torch(requirements: list[str]) -> str | None:
    """Version of torch that a list of requirements pins.

    >>> pinned_torch(["numpy", "torch==2.15.0"])
    '2.15.0'
    """
    matches = (
        re.fullmatch(r"torch\s*\(?==\s*([0-9.]+)\)?", text.partition(";")[0].strip()) for text in requirements
    )
    return next((match[1] for match in matches if match), None)


def _check_devices() -> Iterator[Finding]:
    if util.find_spec("torch") is None:
        from deltavlm.model.openvino import usable_cores

        cores, threads = pluralize(os.cpu_count() or 1, "core"), pluralize(usable_cores(), "thread")
        yield Finding("devices", "ok", f"cpu: {cores}, {threads}")
        return
    import torch

    devices = [
        f"cpu: {pluralize(os.cpu_count() or 1, 'core')}, {pluralize(torch.get_num_threads(), 'thread')}"
    ]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps")
    yield Finding("devices", "ok", "; ".join(devices))
    if torch.version.cuda and not torch.cuda.is_available() and Path("/proc/driver/nvidia").exists():
        yield Finding(
            "cuda",
            "warning",
            "an NVIDIA driver is installed, but torch cannot use it",
            "update the driver, or use `device='cpu'`",
        )


def _check_gdal() -> Iterator[Finding]:
    from deltavlm.geo import UNSET_VARIABLES  # first: it unsets variables that would mislead rasterio

    unset = dict(UNSET_VARIABLES)
    import pyogrio
    import rasterio

    versions = (
        f"rasterio with GDAL {rasterio.__gdal_version__} and PROJ {rasterio.__proj_version__}, "
        f"pyogrio with GDAL {pyogrio.__gdal_version_string__}"
    )
    drivers = pyogrio.list_drivers(write=True)
    missing = sorted({"GPKG", "GeoJSON", "GeoJSONSeq", "FlatGeobuf"} - {*drivers})
    if missing:
        yield Finding(
            "gdal",
            "broken",
            f"{versions}; cannot write {', '.join(missing)}",
            "pip install --force-reinstall pyogrio",
        )
    else:
        yield Finding("gdal", "ok", versions)
    findings = [*check_proj_variables(os.environ, unset, bundled_proj_layout())]
    yield from findings
    if not any(finding.status == "broken" for finding in findings):
        yield _check_projection()


def _check_projection() -> Finding:
    """Check that 3 degrees E, 0 N is (500000, 0) in UTM zone 31N."""
    from rasterio.crs import CRS
    from rasterio.warp import transform

    (x,), (y,) = transform("EPSG:4326", CRS.from_epsg(32631), [3.0], [0.0])
    if abs(x - 500_000) > 0.01 or abs(y) > 0.01:
        return Finding(
            "proj", "broken", f"3 E 0 N became {x:.2f}, {y:.2f} in UTM 31N", "unset PROJ_DATA and PROJ_LIB"
        )
    return Finding("proj", "ok", "coordinates are transformed correctly")


def check_proj_variables(
    environ: Mapping[str, str], unset: Mapping[str, str], bundled_layout: int | None
) -> Iterator[Finding]:
    """Check PROJ_DATA and PROJ_LIB: those of another program (QGIS, conda) make rasterio fail.

    `unset`: variables that deltavlm unset in this process. `bundled_layout`: see `bundled_proj_layout`.
    """
    for name in PROJ_VARIABLES:
        if name in unset:
            yield Finding(
                "proj", "ok", f"{name}={unset[name]} is ignored (DELTAVLM_KEEP_PROJ=1 would keep it)"
            )
        elif name in environ:
            layout = _layout_of(Path(environ[name]))
            if layout is None:
                problem = f"{name}={environ[name]} has no readable proj.db"
            elif bundled_layout is not None and layout < bundled_layout:
                problem = (
                    f"{name}={environ[name]} is too old for rasterio (layout {layout}, not {bundled_layout})"
                )
            else:
                yield Finding("proj", "ok", f"{name}={environ[name]} is kept, and fits rasterio")
                continue
            yield Finding("proj", "broken", problem, f"unset {name} and DELTAVLM_KEEP_PROJ")


def bundled_proj_layout() -> int | None:
    """Minor version of the layout of rasterio's own proj.db, found without importing rasterio."""
    rasterio = util.find_spec("rasterio")
    return _layout_of(Path(rasterio.origin).parent / "proj_data") if rasterio and rasterio.origin else None


def _layout_of(folder: Path) -> int | None:
    """Minor version of the layout of a folder's proj.db; None without a readable one."""
    database = folder / "proj.db"
    if not database.is_file():
        return None
    try:
        uri = f"{database.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            row = connection.execute(
                "SELECT value FROM metadata WHERE key = 'DATABASE.LAYOUT.VERSION.MINOR'"
            ).fetchone()
        return int(row[0]) if row else None
    except (sqlite3.Error, ValueError):
        return None


def _check_questions() -> Iterator[Finding]:
    from deltavlm.config import shipped_config
    from deltavlm.tasks.questions import load_questions

    try:
        path = shipped_config("questions.yaml")
        yield Finding("questions", "ok", f"{len(load_questions(path))} in {path}")
    except ConfigError as error:
        yield Finding("questions", "broken", str(error), "reinstall deltavlm")


def _check_model() -> Iterator[Finding]:
    import numpy as np

    from deltavlm import load_model
    from deltavlm.model.config import RuntimeOptions
    from deltavlm.model.folder import find_folder
    from deltavlm.model.interface import Question
    from deltavlm.model.runtime import pick_runtime
    from deltavlm.tasks.classify import PROMPT

    try:
        if pick_runtime(find_folder("nano"), RuntimeOptions()) == "torch" and _import_error("torchvision"):
            detail = "not tried: it runs on a GPU, and needs torch and torchvision there"
            yield Finding("model", "warning", detail, "repair these first")
            return
        model = load_model("nano")
        black = np.zeros((1, 3, model.chip_px, model.chip_px), np.uint8)
        ((reply,),) = model.answer(model.encode(black, black), [Question("change", PROMPT, yes_no=True)])
    except DeltaVLMError as error:
        yield Finding("model", "broken", str(error), "reinstall deltavlm")
        return
    runtime = model.details.get("runtime", "torch")
    yield Finding(
        "model",
        "ok",
        f"{model.name} ({model.fingerprint}) runs on {model.device} with {runtime}; "
        f"two black images changed? {reply.text}",
    )


CHECKS = (
    *(_check_packages, _check_openvino, _check_torch, _check_devices),
    *(_check_gdal, _check_questions, _check_model),
)
