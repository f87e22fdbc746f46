"""The fixture `run` of the command line's tests."""

from tests.cli.conftest import run

__all__ = ["run"]
