"""Exception hierarchy of deltavlm, with the exit code of the command line for each class.

::

    DeltaVLMError              1   any expected error
    ├── InputError             2   unusable input: file, model, device, option
    │   ├── RasterError        2   missing, unreadable, not comparable, without CRS, without overlap
    │   ├── ConfigError        2   unknown key, wrong value, bad question file
    │   └── OutputError        2   exists, not writable, unknown suffix
    ├── WriteError             1   writing the output failed: the disk is full
    ├── ModelError             1   broken or mismatched checkpoint, failure at runtime
    │   └── ModelOutOfMemory   1   a batch did not fit; the pipeline halves it and retries
    ├── ToolError              1   a required program or package is missing or fails: Java
    ├── AnswerParseError       1   an answer that its task cannot parse; caught for each answer
    └── PartialFailure         3   the run finished and its output is complete, but some chips or pairs failed

A message is one line: what is wrong, with the value and the file, then what to do next. URLs in it lose their
user, password, query and fragment, which may be secrets.
"""

from __future__ import annotations

from typing import ClassVar

from deltavlm.messages import redact

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
    """Base class; `exit_code` is the exit status of the command line."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(arg) if isinstance(arg, str) else arg for arg in args))


class InputError(DeltaVLMError):
    """Input that cannot be used: a file, an option, a configuration, a missing device."""

    exit_code: ClassVar[int] = 2


class RasterError(InputError):
    """A raster that is missing or unreadable, or two rasters that cannot be compared."""


class ConfigError(InputError):
    """A configuration or question file with an unknown key or an invalid value."""


class OutputError(InputError):
    """An output that exists already, cannot be written, or has an unknown suffix."""


class WriteError(DeltaVLMError):
    """A failure of writing after all checks: the disk is full, or the folder was removed."""


class ModelError(DeltaVLMError):
    """A model that cannot be loaded or run."""


class ModelOutOfMemory(ModelError):
    """A batch that did not fit into memory; a smaller one may."""


class ToolError(DeltaVLMError):
    """A program or optional package that is missing or fails."""


class AnswerParseError(DeltaVLMError):
    """An answer whose text does not have the format of its task."""


class PartialFailure(DeltaVLMError):
    """A complete output in which some chips have no answer, or some input data were skipped."""

    exit_code: ClassVar[int] = 3
