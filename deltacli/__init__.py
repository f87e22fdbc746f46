"""Command line of deltavlm: commands, options, progress and exit codes; the library does not import it."""

from __future__ import annotations

import signal
import sys
import threading

# Run as the program, not imported by another: until `signals.catch_signals` takes over, Ctrl-C ends the
# process without a word. Python's own handler would print a traceback from among the imports.
if (
    sys.argv[0].endswith(("-m", "deltavlm", "deltavlm.exe"))  # "-m": `python -m deltacli`, at this point
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else the parent has it ignored
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
