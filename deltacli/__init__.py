"""The command line: words, options, progress and exit codes. Nothing in `deltavlm` imports this."""

from __future__ import annotations
