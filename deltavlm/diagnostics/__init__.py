"""Diagnosis of an installation, and of a model on this machine: findings with remedies."""

from __future__ import annotations

from deltavlm.diagnostics.installation import (
    Finding,
    bundled_proj_layout,
    check_proj_variables,
    check_torchvision,
    diagnose,
    package_versions,
    pinned_torch,
)

__all__ = [
    "Finding",
    "bundled_proj_layout",
    "check_proj_variables",
    "check_torchvision",
    "diagnose",
    "package_versions",
    "pinned_torch",
]
