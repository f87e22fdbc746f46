"""How fast `deltavlm analyze` is, and what it needs, over pairs in the layouts in which files come.

    python benchmarks/analyze.py               chips/s with a model, against the loop that a user would write
    python benchmarks/analyze.py --read-only   against opening both files for each chip, and inflating
    python benchmarks/analyze.py --growth      memory by the raster's size, journal and output by chips
    python benchmarks/analyze.py --growth --ask --sides 4096 20000     the same with a model that answers

The user's loop opens both files for each chip, reads a window, asks one question after the other (pictures
encoded again for each) and appends to a GeoJSON; it has some of the chips, from all over the pair. Both ways
run in one process with one model, alternating, and their answers are compared. Reading: rounds alternate too,
each in a process of its own, with files in the page cache; what one core inflates is measured with the
library that GDAL has, on the file's own blocks. Growth: with a stub for a model, which costs nothing, so that
the share of a run that its results cost is said of a run at a named speed.

Rasters are made, with noise, so that no two chips are alike; the script stops where one is not asked for
itself. Prints Markdown on stdout; talk goes to stderr. Linux only. `--quick` takes about a minute, and its
numbers are for looking only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

from benchmarks.layouts import LAYOUTS, make_pair  # noqa: E402
from benchmarks.rows import Table, heading, spread  # noqa: E402

CHIP_BYTES = 2 * 3 * 256 * 256  # of a pair of chips of 256 px, a byte a value
RUN_SPEED = 40  # chips/s of the run whose share the results are


def alone(what: str, **given: object) -> dict[str, Any]:
    """What a function of `measured.py` gives in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.measured", what, json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def reading(args: argparse.Namespace, folder: Path) -> None:
    table = Table()
    for layout in args.layout:
        before, after = map(str, made(folder, layout, args.side))
        naive, ours, bounds = [], [], []
        for number in range(args.rounds + 1):
            slow = alone("open_per_chip", before=before, after=after, chips=args.loop_chips)
            fast = alone("by_strips", before=before, after=after)
            bound = alone("inflate", path=before) if "deflate" in layout else None
            said(f"round {number}: {slow['seconds']:.2f} s, {fast['seconds']:.2f} s")
            if number:  # the first is a warm-up
                naive.append(slow)
                ours.append(fast)
                bounds.append(bound)
        ratios = [speed(fast) / speed(slow) for fast, slow in zip(ours, naive, strict=True)]
        cores = [fast["chips"] / fast["cpu_s"] for fast in ours]
        inflated = [bound["bytes_per_s"] / CHIP_BYTES for bound in bounds if bound]
        shares = [core / bound for core, bound in zip(cores, inflated, strict=False)]
        table.row(
            {
                "layout": layout,
                "chips": ours[0]["chips"],
                "chips/s": spread([speed(one) for one in ours], 0),
                "opened per chip: chips/s": spread([speed(one) for one in naive]),
                "ratio": f"**{statistics.median(ratios):.1f}x**",
                "chips per core and s": spread(cores, 0),
                f"one core inflates ({bounds[0]['library'] if bounds[0] else '-'})": (
                    spread(inflated, 0) if inflated else "-"
                ),
                "share of that": f"{statistics.median(shares):.2f}" if shares else "-",
                "peak MB": spread([one["peak_mb"] for one in ours], 0),
            }
        )


def speed(told: dict[str, Any]) -> float:
    return float(told["chips"] / told["seconds"])


def answering(args: argparse.Namespace, folder: Path) -> None:
    table = Table()
    for layout in args.layout:
        before, after = made(folder, layout, args.side)
        told = alone(
            "compared", before=str(before), after=str(after), folder=str(folder), model=args.model,
            threads=args.threads, batch=args.batch_size, loop_chips=args.loop_chips, rounds=args.rounds,
        )  # fmt: skip
        rounds = told["rounds"]
        shares = {
            stage: statistics.median(one["shares"][stage] for one in rounds) for stage in rounds[0]["shares"]
        }
        ratios = [one["chips_per_s"] / one["loop_chips_per_s"] for one in rounds]
        table.row(
            {
                "layout": layout,
                "model": told["model"],
                "chips, batch": f"{told['chips']}, {args.batch_size}",
                "chips/s, 4 questions": spread([one["chips_per_s"] for one in rounds]),
                "user's loop": spread([one["loop_chips_per_s"] for one in rounds]),
                "ratio": f"**{statistics.median(ratios):.1f}x**",
                "equal answers": f"{told['equal']} of {told['asked']}",
                "reading beside the rest, of the run": f"{shares['read']:.1%}",
                "waited for it": f"{shares['waited']:.1%}",
                "encode": f"{shares['encode']:.1%}",
                "answer": f"{shares['answer']:.1%}",
                "write": f"{shares['write']:.2%}",
                "peak MB above the model": spread([one["peak_mb"] for one in rounds], 0),
            }
        )


def growth(args: argparse.Namespace, folder: Path) -> None:
    table = Table()
    for layout in args.layout:
        peaks = []
        for side in args.sides:
            before, after = made(folder, layout, side)
            paths = {"before": str(before), "after": str(after), "folder": str(folder)}
            told = (
                alone("modelled", **paths, model=args.model, threads=args.threads, batch=args.batch_size)
                if args.ask
                else alone("stubbed", **paths, chip_px=256)
            )
            peaks.append(told["peak_mb"])
            cells = {"layout": layout, "side, px": side, "chips": told["chips"]}
            cells |= {"chips/s": f"{speed(told):.0f}", "peak MB": f"{told['peak_mb']:.0f}"}
            table.row(cells | {"of the smallest": f"{peaks[-1] / peaks[0]:.2f}"})
            if side == max(args.sides) and not args.keep:
                before.unlink()
                after.unlink()
    if args.ask:
        return
    print()
    table = Table()
    for chips in args.chips:
        across = round(chips**0.5)
        before, after = made(folder, "tiled 512 deflate", 32 * across)
        told = alone("stubbed", before=str(before), after=str(after), folder=str(folder), chip_px=32)
        each = told["write"] / told["chips"]
        table.row(
            {
                "chips (32 px)": told["chips"],
                "journal and output, s": f"{told['write']:.2f}",
                "a chip, ms": f"{1000 * each:.3f}",
                f"of a run at {RUN_SPEED} chips/s": f"{each * RUN_SPEED:.2%}",
                "of this run": f"{told['write'] / told['seconds']:.0%}",
            }
        )


def made(folder: Path, layout: str, side: int) -> list[Path]:
    said(f"{layout}, {side} px")
    return make_pair(folder, layout, side)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--read-only", action="store_true")
    what.add_argument("--growth", action="store_true")
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="only this one; may be repeated")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=2, help="cores that a process may use")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--side", type=int, help="of the pair, px (4096; --read-only: 16384)")
    parser.add_argument("--loop-chips", type=int, help="chips of the slow way (32; --read-only: 256)")
    parser.add_argument("--rounds", type=int, help="(3; --read-only: 5)")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[8192, 32768], help="--growth: of the pairs, px"
    )
    parser.add_argument("--ask", action="store_true", help="--growth: the model, not a stub; sides alone")
    parser.add_argument("--chips", type=int, nargs="+", default=[1000, 100_000], help="--growth: chips asked")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the rasters are made, and stay")
    parser.add_argument("--quick", action="store_true", help="small rasters and one round")
    args = parser.parse_args()
    small = args.quick
    usual = (4096 if small else 16384, 64 if small else 256, 1 if small else 5)
    if not args.read_only:
        usual = (512 if small else 4096, 2 if small else 32, 1 if small else 3)
    args.side, args.loop_chips, args.rounds = (
        given or default
        for given, default in zip((args.side, args.loop_chips, args.rounds), usual, strict=True)
    )
    if small and args.growth:
        args.sides, args.chips = [2048, 4096], [256, 4096]
    args.layout = args.layout or (list(LAYOUTS)[:2] if args.growth else list(LAYOUTS))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    import rasterio

    print(heading(args.threads, f"GDAL {rasterio.__gdal_version__}") + "\n")
    with tempfile.TemporaryDirectory() as folder:
        if args.keep:
            args.keep.mkdir(exist_ok=True, parents=True)
        chosen = reading if args.read_only else growth if args.growth else answering
        chosen(args, args.keep or Path(folder))


if __name__ == "__main__":
    main()
