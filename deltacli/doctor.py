"""`deltavlm doctor`: check the installation, and refuse to start commands that PROJ would break."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

import typer
from typer.core import TyperCommand

from deltacli import options
from deltacli.console import with_flags
from deltacli.flag_groups import CommonFlags, grouped
from deltavlm.errors import DeltaVLMError, InputError


@grouped
def doctor(json_report: options.Json = False, *, common: CommonFlags) -> None:
    """Show versions and devices, and find what is broken. Exit code 1 if anything is."""
    from deltavlm.diagnostics import diagnose, package_versions

    findings = diagnose()
    broken = [finding.name for finding in findings if finding.status == "broken"]
    if json_report:
        checks = [asdict(finding) for finding in findings]
        report = {"ok": not broken, "versions": package_versions(), "checks": checks}
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        for finding in findings:
            typer.echo(f"{finding.status:<8} {finding.name:<12} {finding.detail}")
            if finding.remedy:
                typer.echo(f"{'':<21} -> {with_flags(finding.remedy)}")
    if broken:
        raise DeltaVLMError(f"broken: {', '.join(broken)}; see the remedies above")


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
