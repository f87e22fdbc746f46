"""Size, rendering time and browser speed of the page of `deltavlm report`, at 10, 1,000 and 10,000 chips.

    python benchmarks/report.py [--chips 10 1000 10000] [--keep FOLDER]

The pair is `sample_data`, repeated side by side; the answers are random with a fixed seed, without a model.
With chromium, chromedriver and selenium the page is also timed in a browser: a search, a sort, and a frame
while the map is zoomed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import PIL  # noqa: E402
import rasterio  # noqa: E402
from rasterio.windows import Window  # noqa: E402
from rows import Table, heading, spread  # noqa: E402

from deltavlm.config import shipped_config  # noqa: E402
from deltavlm.geo.pair import RasterPair, open_pair  # noqa: E402
from deltavlm.geo.sinks import open_sink  # noqa: E402
from deltavlm.model.interface import Reply  # noqa: E402
from deltavlm.pipeline.answers import read_answer  # noqa: E402
from deltavlm.pipeline.job import AnalyzeJob  # noqa: E402
from deltavlm.pipeline.pair_record import PairRecord, PairResult  # noqa: E402
from deltavlm.pipeline.pairs import PairList  # noqa: E402
from deltavlm.pipeline.provenance import provenance  # noqa: E402
from deltavlm.pipeline.results import ChipResult  # noqa: E402
from deltavlm.pipeline.schema import LOCATIONS, chips_layer  # noqa: E402
from deltavlm.pipeline.writer import OutputCRS, ResultWriter  # noqa: E402
from deltavlm.tasks.locate import LABELS  # noqa: E402
from deltavlm.tasks.questions import load_questions  # noqa: E402

CHIP = 256
NOUNS = ("a road", "some houses", "a large building", "many villas and a curved road")
LOCATIONS_IN_WORDS = (
    "on the bareland",
    "on the meadow in the top-left corner",
    "beside the old road",
    "at the bottom",
)


def tile_image(source: Path, target: Path, width: int, height: int) -> None:
    """Write the image repeated side by side up to `width` x `height` px, as a tiled JPEG GeoTIFF."""
    with rasterio.open(source) as image:
        pixels, profile = image.read(), image.profile
    profile |= {"width": width, "height": height, "tiled": True, "blockxsize": CHIP, "blockysize": CHIP}
    profile |= {"compress": "jpeg", "photometric": "ycbcr", "interleave": "pixel"}
    profile.pop("predictor", None)
    with rasterio.open(target, "w", **profile) as out:
        for row in range(0, height, pixels.shape[1]):
            for col in range(0, width, pixels.shape[2]):
                block = pixels[:, : height - row, : width - col]
                out.write(block, window=Window(col, row, block.shape[2], block.shape[1]))


def draw_reply(task: str, score: float, draw: random.Random) -> Reply:
    """Random answer to the question of a task about a chip with this score of change."""
    changed = score > 0.5
    words = {
        "change": "yes" if changed else "no",
        "caption": f"{draw.choice(NOUNS)} is built {draw.choice(LOCATIONS_IN_WORDS)}"
        if changed
        else "there is no difference",
        "count": f"{draw.randrange(3)} new roads and {draw.randrange(9)} new buildings",
        "location": f"roads {draw.sample(LABELS, 2)} buildings {draw.sample(LABELS, 3)}",
    }
    return Reply(words[task], score if task == "change" else -draw.random())


def write_output(folder: Path, number: int) -> Path:
    """Write an output of `number` chips and its pair. Returns its path."""
    cols = next(cols for cols in range(int(number**0.5) or 1, 0, -1) if number % cols == 0)
    pair = [folder / f"{number}_{date}.tif" for date in ("before", "after")]
    for path in pair:
        if not path.exists():
            sample = ROOT / "sample_data" / path.name.partition("_")[2]
            tile_image(sample, path, number // cols * CHIP, cols * CHIP)
    draw, specs = random.Random(7), load_questions(shipped_config("questions.yaml"))
    model: Any = SimpleNamespace(
        name="none", fingerprint="random", device="cpu", details={}, chip_px=CHIP, training_gsd_m=0.5
    )
    path = folder / f"{number}.gpkg"
    with open_pair(RasterPair(*map(str, pair))) as reader:
        results = []
        for chip in reader.chips(CHIP):
            score = draw.random() ** 3
            answers = {spec.name: read_answer(spec, draw_reply(spec.task, score, draw)) for spec in specs}
            results.append(ChipResult(chip, "answered", 1.0, answers))
        pairs = PairList.single(*map(str, pair))
        record = provenance(AnalyzeJob(pairs=pairs, questions=specs), model, reader.provenance())
        (single_pair,) = pairs.pairs
        opened = {"": PairResult(single_pair, PairRecord.of(single_pair, reader, reader.chips(CHIP)))}
        layers = (chips_layer(specs), LOCATIONS)
        with open_sink(path, layers, reader.geobox.crs, record, overwrite=True) as sink:
            crs = OutputCRS(reader.geobox.crs, untransformed=True)
            ResultWriter(sink, specs, "none random", crs).write_chips(results, opened)
    return path


BROWSER_SCRIPT = """
const done = arguments[0], map = document.getElementById("map"), search = document.getElementById("search");
const clocked = (work) => { const start = performance.now(); work(); return performance.now() - start; };
const median = (all) => all.sort((a, b) => a - b)[all.length >> 1];
const typed = ["r", "ro", "roa", "road", "road m"].map((text) => clocked(() => {
  search.value = text; search.dispatchEvent(new Event("input", { bubbles: true })); }));
search.value = ""; search.dispatchEvent(new Event("input", { bubbles: true }));
const sorted = [1, 2, 3, 4].map(() => clocked(() => document.querySelector("[data-by=caption]").click()));
const box = map.getBoundingClientRect(), frames = [];
let last = performance.now(), count = 0;
const next = () => {
  const now = performance.now(); frames.push(now - last); last = now;
  if (count++ === 60) {
    const slowest = Math.max(...frames.slice(1));
    return done([median(typed), median(sorted), median(frames), slowest]);
  }
  const at = { deltaY: count % 2 ? -20 : 20, clientX: box.x + 300, clientY: box.y + 200 };
  map.dispatchEvent(new WheelEvent("wheel", at));
  requestAnimationFrame(next);
};
requestAnimationFrame(next);
"""


def measure_in_browser(page: Path) -> list[float] | None:
    """Milliseconds of a search, a sort, the median and the slowest frame; None without a browser."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        return None
    if browser is None or driver is None:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        "--headless=new",
        "--window-size=1400,900",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(flag)
    tab = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        tab.get(page.as_uri())
        time.sleep(2)  # until the images are decoded
        timings: list[float] = tab.execute_async_script(BROWSER_SCRIPT)
    finally:
        tab.quit()
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--keep", type=Path, help="make the rasters here, once")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(
        heading(os.cpu_count() or 1, f"Pillow {PIL.__version__}", f"GDAL {rasterio.__gdal_version__}") + ".\n"
    )
    table = Table()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        for number in args.chips:
            source, page = write_output(folder, number), folder / f"{number}.html"
            seconds = []
            for _ in range(args.rounds):
                start = time.perf_counter()
                command = ["report", str(source), "-o", str(page), "--overwrite", "-q"]
                subprocess.run([sys.executable, "-m", "deltacli", *command], cwd=ROOT, check=True)
                seconds.append(time.perf_counter() - start)
            with rasterio.open(folder / f"{number}_after.tif") as image:
                size = f"{image.width} x {image.height}"
            ms = measure_in_browser(page)
            use = [f"{milliseconds:.0f}" for milliseconds in ms] if ms else ["-"] * 4
            table.row(
                {
                    "chips": f"{number:,}",
                    "pair, px": size,
                    "page, MB": f"{page.stat().st_size / 1e6:.2f}",
                    "made in, s": spread(seconds),
                    "search, ms": use[0],
                    "sort, ms": use[1],
                    "frame, ms (slowest)": f"{use[2]} ({use[3]})",
                }
            )


if __name__ == "__main__":
    main()
