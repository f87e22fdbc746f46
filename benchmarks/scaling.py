"""How long a country takes and what it costs, by the number of GPUs: arithmetic, every assumption an option.

    python benchmarks/scaling.py --area-km2 41285 --price 3.0

Nothing is measured here. It prints its assumptions, says of each speed whether it was measured or stands on
paper, and a table. A speed of your own: `--speed "name=chips per second of one GPU"`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """Chips a second of one unit of what is paid by the hour."""

    name: str
    chips_per_s: float
    unit: str  # "GPU" or "core"
    kind: str  # "paper" or "measured"


SPEEDS = (
    Speed("7B, every chip asked 4 questions, the roofline's bound", 172, "GPU", "paper"),
    Speed("7B, the same, half of the bound", 85, "GPU", "paper"),
    Speed("7B, --cascade, a tenth changed, 60 % of its bound", 233, "GPU", "paper"),
    Speed("nano, 4 questions (44.4 on 2 cores, results.md)", 44.4 / 2, "core", "measured"),
)


@dataclass(frozen=True)
class Job:
    """What there is to do, and what limits it besides the model."""

    chips: float
    read_per_core_s: float  # chips
    driver_per_s: float  # chips
    efficiency: float  # share of n times one unit that n of them give
    start_s: float

    def hours(self, speed: Speed, units: int) -> tuple[float, str]:
        """How long it takes, and what holds it up."""
        model = speed.chips_per_s * units * (self.efficiency if units > 1 else 1)
        rate, limit = min((model, speed.unit), (self.driver_per_s, "driver"))
        return (self.start_s + self.chips / rate) / 3600, limit


def parsed() -> argparse.Namespace:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--area-km2", type=float, default=41285, help="of the country; default Switzerland")
    ask.add_argument("--gsd", type=float, default=0.5, help="metres a pixel")
    ask.add_argument("--chip-px", type=int, default=256)
    ask.add_argument("--overlap-px", type=int, default=0)
    ask.add_argument("--gpus", default="1,8,64", help="how many, or cores for a speed of cores")
    ask.add_argument("--price", type=float, default=3.0, help="of a GPU hour, in any currency")
    ask.add_argument("--core-price", type=float, default=0.04, help="of a core's hour")
    ask.add_argument("--efficiency", type=float, default=0.9, help="share of n times one GPU that n give")
    ask.add_argument("--start-s", type=float, default=300, help="until every model is loaded")
    ask.add_argument("--read-per-core", type=float, default=751, help="chips/s read by a core (results.md)")
    ask.add_argument("--driver", type=float, default=4400, help="chips/s of one driver (results.md)")
    ask.add_argument(
        "--speed", action="append", default=[], metavar="NAME=CHIPS/S", help="one more, of a GPU"
    )
    return ask.parse_args()


def main() -> None:
    asked = parsed()
    step_m = (asked.chip_px - asked.overlap_px) * asked.gsd
    chips = asked.area_km2 * 1e6 / step_m**2
    job = Job(chips, asked.read_per_core, asked.driver, asked.efficiency, asked.start_s)
    print(f"{asked.area_km2:,.0f} km2 at {asked.gsd:g} m: {chips:,.0f} chips, one every {step_m:g} m")
    for name, value in vars(asked).items():
        print(f"  --{name.replace('_', '-')} {value}")
    own = (one.rpartition("=") for one in asked.speed)
    speeds = (*SPEEDS, *(Speed(name, float(value), "GPU", "given") for name, _, value in own))
    columns = ("speed of one", "", "chips/s", "units", "hours", "cost", "cores that read", "held up by")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for speed in speeds:
        for units in map(int, asked.gpus.split(",")):
            hours, limit = job.hours(speed, units)
            price = asked.price if speed.unit == "GPU" else asked.core_price
            readers = chips / (hours * 3600) / job.read_per_core_s
            row = (
                speed.name,
                speed.kind,
                f"{speed.chips_per_s:g}",
                f"{units} {speed.unit}{'s' * (units > 1)}",
                f"{hours:,.2f}",
            )
            cost = f"{hours * units * price:,.0f}"
            print(f"| {' | '.join((*row, cost, f'{readers:,.1f}', limit))} |")


if __name__ == "__main__":
    main()
