"""The command line: words, options, progress and exit codes. Nothing in `deltavlm` imports this."""

from __future__ import annotations

import signal
import sys
import threading

# Run as the program, not imported by another: until `signals.stoppable` takes over, Ctrl-C ends the process
# as it ends any other. Python's own handler would show where in the imports it struck.
if (
    sys.argv[0].endswith(("-m", "deltavlm", "deltavlm.exe"))  # "-m": `python -m deltacli`, at this point
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else the parent has it ignored
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
