"""Peak resident memory of this process, for benchmarks; Linux only."""

from __future__ import annotations

from pathlib import Path


class Peak:
    """Peak resident memory since this object was created, MB above the memory resident then."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.start = self._kb("VmRSS")

    @property
    def mb(self) -> float:
        return (self._kb("VmHWM") - self.start) / 1000

    @staticmethod
    def _kb(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))
