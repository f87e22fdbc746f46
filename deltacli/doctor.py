"""`deltavlm doctor`: is everything here that a run needs, and does it fit together?"""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, Literal

import typer
from typer.core import TyperCommand

from deltacli import options
from deltacli.console import console
from deltacli.flag_groups import CommonFlags, grouped
from deltavlm import __version__
from deltavlm.errors import ConfigError, DeltaVLMError, InputError

_NEEDED = (
    *("numpy", "rasterio", "pyproj", "shapely", "pyogrio", "pyarrow", "geopandas"),
    *("torch", "torchvision", "transformers", "timm", "tokenizers", "safetensors", "pillow"),
    *("typer", "rich", "pyyaml"),
)
_PROJ_VARIABLES = ("PROJ_DATA", "PROJ_LIB")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` says what to do where it is not ok."""

    name: str
    status: Literal["ok", "warning", "broken"]
    detail: str
    remedy: str = ""


@grouped
def doctor(
    json_report: options.Json = False,
    *,
    common: CommonFlags,
) -> None:
    """Show versions and devices, and find what is broken. Exit code 1 if something is."""
    findings = [finding for look in _CHECKS for finding in _looked(look)]
    broken = [finding.name for finding in findings if finding.status == "broken"]
    if json_report:
        report = {"ok": not broken, "versions": _versions(), "checks": [asdict(one) for one in findings]}
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        for finding in findings:
            typer.echo(f"{finding.status:<8} {finding.name:<12} {finding.detail}")
            if finding.remedy:
                typer.echo(f"{'':<21} -> {finding.remedy}")
    if broken:
        raise DeltaVLMError(f"broken: {', '.join(broken)}; see the remedies above")


def _looked(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one check; a check that itself fails is a finding too."""
    try:
        yield from look()
    except Exception as error:
        console.traceback(error)
        name = look.__name__.removeprefix("_check_").replace("_", " ")
        yield Finding(name, "broken", _one_line(error), "reinstall deltavlm; -vv shows the traceback")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    return {"deltavlm": __version__, "python": platform.python_version()} | {
        name: _version(name) for name in _NEEDED
    }


def _check_packages() -> Iterator[Finding]:
    versions = _versions()
    present = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Finding("versions", "ok", f"{present}; {platform.platform()}")
    for name, version in versions.items():
        if version is None:
            yield Finding(name, "broken", "not installed", f"pip install {name}")


def _check_torch() -> Iterator[Finding]:
    failure = _import_failure("torch")
    if failure is not None:
        remedy = "pip install --force-reinstall torch torchvision"
        yield Finding("torch", "broken", _one_line(failure), remedy)
        return
    yield torchvision_finding(
        _version("torch"),
        _version("torchvision"),
        _required_torch(metadata.requires("torchvision") or []),
        _import_failure("torchvision"),
    )


def _import_failure(package: str) -> Exception | None:
    try:
        import_module(package)
    except Exception as error:  # a library that does not fit can fail with anything
        return error
    return None


def torchvision_finding(
    torch: str | None, torchvision: str | None, required: str | None, failure: BaseException | None
) -> Finding:
    """Do torch and torchvision belong together? `failure` is what `import torchvision` raised."""
    remedy = (
        "install the two together and from one place: pip install --force-reinstall torch torchvision "
        "(a CPU-only torch needs the CPU-only torchvision)"
    )
    pair = f"torch {torch}, torchvision {torchvision}"
    if failure is not None:
        return Finding(
            "torchvision",
            "broken",
            f"{pair} do not fit together ({_one_line(failure)}): timm and transformers cannot be imported",
            remedy,
        )
    if required is not None and torch is not None and torch.partition("+")[0] != required:
        return Finding(
            "torchvision", "warning", f"{pair}: this torchvision asks for torch {required}", remedy
        )
    return Finding("torchvision", "ok", f"{pair} fit together")


def _required_torch(requirements: list[str]) -> str | None:
    """`["torch==2.15.0", ...]` -> `"2.15.0"`."""
    pinned = (
        re.fullmatch(r"torch\s*\(?==\s*([0-9.]+)\)?", text.partition(";")[0].strip()) for text in requirements
    )
    return next((match[1] for match in pinned if match), None)


def _check_devices() -> Iterator[Finding]:
    import torch

    threads = f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    devices = [threads]
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
            "an NVIDIA driver is here but torch cannot use it",
            "update the driver, or use --device cpu",
        )


def _check_gdal() -> Iterator[Finding]:
    from deltavlm.geo import UNSET_VARIABLES  # first: it unsets what would mislead rasterio

    unset = dict(UNSET_VARIABLES)
    import pyogrio
    import rasterio
    from rasterio.crs import CRS
    from rasterio.warp import transform

    text = (
        f"rasterio with GDAL {rasterio.__gdal_version__} and PROJ {rasterio.__proj_version__}, "
        f"pyogrio with GDAL {pyogrio.__gdal_version_string__}"
    )
    drivers = pyogrio.list_drivers(write=True)
    missing = sorted({"GPKG", "GeoJSON", "GeoJSONSeq", "FlatGeobuf"} - {*drivers})
    if missing:
        yield Finding(
            "gdal",
            "broken",
            f"{text}; cannot write {', '.join(missing)}",
            "pip install --force-reinstall pyogrio",
        )
    else:
        yield Finding("gdal", "ok", text)
    kept = [*proj_findings(os.environ, unset, _bundled_minor())]
    yield from kept
    if any(finding.status == "broken" for finding in kept):
        return
    (x,), (y,) = transform("EPSG:4326", CRS.from_epsg(32631), [3.0], [0.0])
    if abs(x - 500_000) > 0.01 or abs(y) > 0.01:
        yield Finding(
            "proj", "broken", f"3 E 0 N became {x:.2f}, {y:.2f} in UTM 31N", "unset PROJ_DATA and PROJ_LIB"
        )
    else:
        yield Finding("proj", "ok", "coordinates are transformed rightly")


def proj_findings(
    environ: Mapping[str, str], unset: Mapping[str, str], bundled_minor: int | None
) -> Iterator[Finding]:
    """PROJ_DATA of another program (QGIS, conda) makes rasterio fail; deltavlm unsets it for itself."""
    for name in _PROJ_VARIABLES:
        if name in unset:
            yield Finding(
                "proj", "ok", f"{name}={unset[name]} is ignored (DELTAVLM_KEEP_PROJ=1 would keep it)"
            )
        elif name in environ:
            minor = _layout_minor(Path(environ[name]))
            if minor is None:
                trouble = f"{name}={environ[name]} has no readable proj.db"
            elif bundled_minor is not None and minor < bundled_minor:
                trouble = (
                    f"{name}={environ[name]} is too old for rasterio (layout {minor}, not {bundled_minor})"
                )
            else:
                yield Finding("proj", "ok", f"{name}={environ[name]} is kept and fits")
                continue
            yield Finding("proj", "broken", trouble, f"unset {name} and DELTAVLM_KEEP_PROJ")


class NeedsProj(TyperCommand):
    """A command that does not start while DELTAVLM_KEEP_PROJ keeps a PROJ_DATA that rasterio cannot read."""

    def invoke(self, ctx: Any) -> Any:
        """Raises: InputError, in one line; PROJ itself would write another to stderr."""
        if os.environ.get("DELTAVLM_KEEP_PROJ") == "1":
            for finding in proj_findings(os.environ, {}, _bundled_minor()):
                if finding.status == "broken":
                    raise InputError(f"{finding.detail}; {finding.remedy}, or run deltavlm doctor")
        return super().invoke(ctx)


def _bundled_minor() -> int | None:
    """Minor version of the layout that rasterio brings; rasterio is found, not imported."""
    rasterio = util.find_spec("rasterio")
    return _layout_minor(Path(rasterio.origin).parent / "proj_data") if rasterio and rasterio.origin else None


def _layout_minor(folder: Path) -> int | None:
    """Minor version of the layout of a folder's proj.db; None without a readable one."""
    database = folder / "proj.db"
    if not database.is_file():
        return None
    try:
        with closing(
            sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as connection:
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
    if _import_failure("torchvision") is not None:
        yield Finding("model", "warning", "not tried: it needs torch and torchvision", "mend these first")
        return
    import numpy as np

    from deltavlm.model.interface import Question
    from deltavlm.model.predictor import load_model
    from deltavlm.tasks.classify import PROMPT

    try:
        model = load_model("nano")
        black = np.zeros((1, 3, model.chip_px, model.chip_px), np.uint8)
        ((said,),) = model.answer(model.encode(black, black), [Question("change", PROMPT, yes_no=True)])
    except DeltaVLMError as error:
        yield Finding("model", "broken", str(error), "reinstall deltavlm")
        return
    yield Finding(
        "model",
        "ok",
        f"{model.name} ({model.fingerprint}) runs on {model.device}; two black pictures changed? {said.text}",
    )


_CHECKS = (_check_packages, _check_torch, _check_devices, _check_gdal, _check_questions, _check_model)
