"""`deltavlm doctor`: check the installation, or prove a model; refuse commands that PROJ would break."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from deltacli import options
from deltacli.console import console, with_flags
from deltacli.flag_groups import CommonFlags, ModelFlags, given_flags, grouped
from deltacli.options import MODEL, flag
from deltavlm.errors import DeltaVLMError, InputError

if TYPE_CHECKING:
    from deltavlm.diagnostics import Finding


@dataclass(frozen=True, kw_only=True)
class DoctorModelFlags(ModelFlags):
    """Model to prove; none to check the installation."""

    model: Annotated[
        str,
        flag(
            *("--model", "-m"),
            panel=MODEL,
            metavar="NAME|FOLDER|hf:MODEL|openai:URL#MODEL",
            show_default="check the installation instead",
            help="Prove this model on this machine: answers to two made pairs, both images, time, memory.",
        ),
    ] = ""


@grouped
def doctor(json_report: options.Json = False, *, model: DoctorModelFlags, common: CommonFlags) -> None:
    """Show versions and devices, and find what is broken; or prove a model. Exit code 1 if anything is.

    With --model, the model answers the standard questions about a made pair with new buildings, and one
    without a change. Shown are the answers, whether yes and no have a probability, whether both images and
    their order are seen, what cannot be read, the time for a chip, and the memory.
    """
    from deltavlm.diagnostics import diagnose, package_versions

    if not model.model and model != DoctorModelFlags():
        raise typer.BadParameter(
            f"is for a model; add --model, or leave {given_flags(model)[0]} out",
            param_hint=given_flags(model)[0],
        )
    report: dict[str, Any] = {}
    if model.model:
        findings, report = _prove(model)
    else:
        findings, report = diagnose(), {"versions": package_versions()}
    broken = [finding.name for finding in findings if finding.status == "broken"]
    if json_report:
        checks = [asdict(finding) for finding in findings]
        typer.echo(json.dumps({"ok": not broken, **report, "checks": checks}, ensure_ascii=False))
    else:
        for finding in findings:
            typer.echo(f"{finding.status:<8} {finding.name:<12} {with_flags(finding.detail)}")
            if finding.remedy:
                typer.echo(f"{'':<21} -> {with_flags(finding.remedy)}")
    if broken:
        raise DeltaVLMError(f"broken: {', '.join(broken)}; see the remedies above")


def _prove(flags: DoctorModelFlags) -> tuple[list[Finding], dict[str, Any]]:
    """Findings about a model, and what was measured, for the JSON report."""
    from deltavlm.diagnostics.model import diagnose_model
    from deltavlm.files import format_bytes
    from deltavlm.model.kinds import read_footprint
    from deltavlm.model.memory import free_memory

    flags.read_spec()
    flags.check_device()
    footprint = read_footprint(flags.model, flags.runtime_options())
    if footprint is not None:
        free = free_memory(footprint.device)
        free_text = "" if free is None else f", and {format_bytes(free)} are free"
        console.info(f"{flags.model} needs about {format_bytes(footprint.peak())} of memory{free_text}")
    started = time.monotonic()
    model = flags.load()
    facts = {"name": model.name, "fingerprint": model.fingerprint, "device": model.device, **model.details}
    diagnosis = diagnose_model(model, time.monotonic() - started)
    figures = dict(diagnosis.figures)
    if footprint is not None:
        figures["estimated_bytes"] = float(footprint.peak())
    return list(diagnosis.findings), {"model": facts, "figures": figures}


class ProjCommand(TyperCommand):
    """Command that does not start while DELTAVLM_KEEP_PROJ keeps a PROJ_DATA that rasterio cannot read."""

    def invoke(self, ctx: Any) -> Any:
        """Raises: InputError on one line; PROJ itself would print another to stderr."""
        if os.environ.get("DELTAVLM_KEEP_PROJ") == "1":
            from deltavlm.diagnostics import bundled_proj_layout, check_proj_variables

            for finding in check_proj_variables(os.environ, {}, bundled_proj_layout()):
                if finding.status == "broken":
                    raise InputError(f"{finding.detail}; {finding.remedy}, or run deltavlm doctor")
        return super().invoke(ctx)
