"""Optional packages: the extra that installs each, and the error where one is missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import util

from deltavlm.errors import InputError

__all__ = [
    "EXTRAS",
    "TORCH_PACKAGES",
    "install_command",
    "missing_package",
    "require_package",
    "require_torch",
]

TORCH_PACKAGES = ("torch", "torchvision", "transformers", "timm", "sentencepiece")
EXTRAS: Mapping[str, str] = {
    **dict.fromkeys(TORCH_PACKAGES, "torch"),
    "bitsandbytes": "quantize",
    "h3": "h3",
    "mcp": "mcp",
    "onnx": "export",
    "peft": "peft",
    "pycocoevalcap": "eval",
    "ray": "ray",
}
"""Package -> extra of deltavlm that installs it, as in pyproject.toml."""


def install_command(package: str) -> str:
    """Command that adds an optional package to an installed deltavlm.

    >>> install_command("torch")
    'pip install "deltavlm[torch]"'
    """
    return f'pip install "deltavlm[{EXTRAS[package]}]"'


def missing_package(package: str, user: str) -> InputError:
    """Error that says what needs the package, and what to type."""
    return InputError(f"{user} needs {package}, which is not installed; {install_command(package)}")


def require_package(package: str, user: str) -> None:
    """Check that an optional package is installed, without importing it.

    user: what needs it.

    Raises: InputError if it is not.
    """
    if util.find_spec(package) is None:
        raise missing_package(package, user)


def require_torch(user: str) -> None:
    """The same of torch and of the packages that are installed with it."""
    for package in TORCH_PACKAGES:
        require_package(package, user)
