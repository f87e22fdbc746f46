"""Every error that deltavlm foresees, and the exit code that the command line gives for it.

::

    DeltaVLMError              1   something foreseen went wrong
    ├── InputError             2   what the user gave cannot be used: file, model, device, option
    │   ├── RasterError        2   missing, unreadable, not comparable, without CRS, without overlap
    │   ├── ConfigError        2   unknown key, wrong value, bad question file
    │   └── OutputError        2   exists, no place to write, unknown suffix
    ├── WriteError             1   the output cannot be written to its end: the disk is full
    ├── ModelError             1   checkpoint broken or not matching, failure while it runs
    │   └── ModelOutOfMemory   1   the batch did not fit; the pipeline halves it and tries again
    ├── ToolError              1   a program or package that is needed is missing or fails: Java
    ├── AnswerParseError       1   an answer that no task can read; caught for each answer
    └── PartialFailure         3   the run finished and its output is whole, but some chips or pairs failed

A message is one line: what is wrong, with the value and the file, then what to do next.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AnswerParseError",
    "ConfigError",
    "DeltaVLMError",
    "InputError",
    "ModelError",
    "ModelOutOfMemory",
    "OutputError",
    "PartialFailure",
    "RasterError",
    "ToolError",
    "WriteError",
]


class DeltaVLMError(Exception):
    """Root of the tree; `exit_code` is what the process ends with when nobody catches it."""

    exit_code: ClassVar[int] = 1


class InputError(DeltaVLMError):
    """What the user gave cannot be used: a file, an option, a configuration, a device that is not there."""

    exit_code: ClassVar[int] = 2


class RasterError(InputError):
    """A raster is missing or unreadable, or two rasters cannot be compared."""


class ConfigError(InputError):
    """A configuration or question file has an unknown key or a value that cannot be."""


class OutputError(InputError):
    """The output exists already, cannot be put there, or has an unknown suffix."""


class WriteError(DeltaVLMError):
    """Writing failed after all checks: the disk is full, or the folder has gone."""


class ModelError(DeltaVLMError):
    """The model cannot be loaded or run: checkpoint, size."""


class ModelOutOfMemory(ModelError):
    """One batch did not fit into memory; a smaller one may."""


class ToolError(DeltaVLMError):
    """A program or an optional package is missing or fails."""


class AnswerParseError(DeltaVLMError):
    """The text of an answer does not have the form that its task asks for."""


class PartialFailure(DeltaVLMError):
    """The output is whole and in place, but some chips could not be answered, or some data not used."""

    exit_code: ClassVar[int] = 3
