"""Chips asked about: the work of `analyze` up to a whole output, and the loop that a user would write."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import shapely
from rasterio.windows import Window

from benchmarks.memory import Peak
from deltavlm.config import shipped_config
from deltavlm.geo.pair import RasterPair, open_pair
from deltavlm.model.interface import ChangeModel, Labelled, Question, Reply
from deltavlm.pipeline.answers import question_of
from deltavlm.pipeline.engine import LocalEngine
from deltavlm.pipeline.job import AnalyzeJob, AnalyzeOptions, OutputOptions
from deltavlm.pipeline.pairs import PairList
from deltavlm.pipeline.run import run
from deltavlm.pipeline.summary import Summary
from deltavlm.tasks.questions import load_questions
from deltavlm.tasks.text import clean

SPECS = load_questions(shipped_config("questions.yaml"))
Told = dict[str, Any]


class Stub(Labelled):
    """Answers at once, like a model would: a tenth of the chips have changed."""

    name, fingerprint, device = "stub", "0" * 16, "cpu"
    chip_px, training_gsd_m, workers = 256, 0.5, 1
    phrasebook, reads_context = "deltavlm", False

    def __init__(self) -> None:
        self.details: dict[str, Any] = {}
        unchanged = ("there is no difference", "no", "there are no changes in roads or buildings")
        changed = ("two houses are built", "yes", "no new roads and 2 new buildings")
        self.said = ((*unchanged, "roads [] buildings []"), (*changed, "roads [] buildings ['top-left']"))

    def init_worker(self) -> None:
        pass

    def encode(self, before: np.ndarray, after: np.ndarray, contexts: Any = ()) -> Any:
        return [int(picture[0, 0, 0]) % 10 == 0 for picture in after]

    def answer(self, encoded: Any, questions: Any, pairs: Any = None) -> list[list[Reply]]:
        chosen = encoded if pairs is None else [encoded[pair] for pair in pairs]
        return [[Reply(text, 0.5) for text in self.said[changed]] for changed in chosen]


def ours(
    model: ChangeModel, pair: RasterPair, output: Path, chip_px: int, batch: int, *, cascade: bool = False
) -> Summary:
    """`deltavlm.analyze` with a fixed batch size: open the pair, keep a journal, write the output."""
    job = AnalyzeJob(
        pairs=PairList.single(pair.before, pair.after),
        questions=SPECS,
        options=AnalyzeOptions(chip_px=chip_px, cascade=cascade, batch_size=batch),
        output=OutputOptions(path=output, overwrite=True, resume=False),
    )
    return run(job, nullcontext(LocalEngine(model))).summary


def users_loop(
    model: ChangeModel, pair: RasterPair, output: Path, places: list[tuple[int, int]]
) -> dict[str, list[str]]:
    """Open both files, read a window, ask one question after the other, append to a GeoJSON: chip by chip."""
    questions = [question_of(spec) for spec in SPECS]
    output.unlink(missing_ok=True)
    answers: dict[str, list[str]] = {}
    for row, col in places:
        size = model.chip_px
        pictures = []
        for path in (pair.before, pair.after):
            with rasterio.open(path) as raster:
                pictures.append(raster.read([1, 2, 3], window=Window(col, row, size, size)))
                corners = [raster.transform * at for at in ((col, row), (col + size, row + size))]
        replies = [_asked(model, *pictures, question) for question in questions]
        name = f"r{row:05d}_c{col:05d}"
        answers[name] = [clean(reply.text) for reply in replies]
        (left, top), (right, bottom) = corners
        pyogrio.raw.write(
            output,
            np.array([shapely.to_wkb(shapely.box(left, bottom, right, top))], object),
            [np.array([text], object) for text in (name, *answers[name])],
            ["chip_id", *(spec.name for spec in SPECS)],
            geometry_type="Polygon", crs="EPSG:32631", driver="GeoJSON", append=output.exists(),
        )  # fmt: skip
    return answers


def _asked(model: ChangeModel, before: np.ndarray, after: np.ndarray, question: Question) -> Reply:
    return model.answer(model.encode(before[None], after[None]), [question])[0][0]


def loaded_model(model: str, threads: int, batch: int) -> Any:
    """A model that has answered once, so that what is only taken once is taken."""
    from deltavlm.model.kinds import load_model

    loaded = load_model(model, device="cpu", threads=threads)
    picture = np.zeros((batch, 3, loaded.chip_px, loaded.chip_px), np.uint8)
    loaded.answer(loaded.encode(picture, picture), [question_of(spec) for spec in SPECS])
    return loaded


def compared(
    before: str, after: str, folder: str, model: str, threads: int, batch: int, loop_chips: int, rounds: int
) -> Told:
    """Rounds of both ways, alternating, with one model; the answers of the loop are compared with ours."""
    loaded = loaded_model(model, threads, batch)
    pair, output = RasterPair(before, after), Path(folder, "ours.gpkg")
    with open_pair(pair) as reader:
        chips = list(reader.chips(loaded.chip_px))
    few = [chips[index * len(chips) // loop_chips].window for index in range(loop_chips)]
    places = [(window.row_off, window.col_off) for window in few]
    users_loop(loaded, pair, Path(folder, "loop.geojson"), places[:1])
    told: Told = {"model": f"{loaded.name} {loaded.fingerprint[:8]}", "chips": len(chips), "rounds": []}
    for _ in range(rounds):
        peak, start = Peak(), time.perf_counter()
        summary = ours(loaded, pair, output, loaded.chip_px, batch)
        seconds, peak_mb = time.perf_counter() - start, peak.mb
        start = time.perf_counter()
        slow = users_loop(loaded, pair, Path(folder, "loop.geojson"), places)
        loop_s = time.perf_counter() - start
        if summary.statuses["answered"] != len(chips) or summary.deduplicated:
            raise SystemExit(f"not every chip was asked: {summary.statuses}, {summary.deduplicated} repeated")
        told["rounds"].append(
            {
                "chips_per_s": len(chips) / seconds,
                "loop_chips_per_s": len(places) / loop_s,
                "shares": {
                    name: one / seconds / (loaded.workers if name in ("encode", "answer") else 1)
                    for name, one in asdict(summary.stages).items()
                },
                "peak_mb": peak_mb,
            }
        )
    table = pyogrio.read_dataframe(output, layer="chips", read_geometry=False).set_index("chip_id")
    pairs = [
        (table[f"answer_{spec.name}"][chip], text)
        for chip, texts in slow.items()
        for spec, text in zip(SPECS, texts, strict=True)
    ]
    return told | {"equal": sum(one == other for one, other in pairs), "asked": len(pairs)}


def stubbed(before: str, after: str, folder: str, chip_px: int) -> Told:
    """The whole pair with a model that costs nothing: what is left is reading, journal and output."""
    return _whole(Stub(), before, after, folder, chip_px, 16)


def modelled(before: str, after: str, folder: str, model: str, threads: int, batch: int) -> Told:
    """The whole pair with a model; memory is counted above the model."""
    loaded = loaded_model(model, threads, batch)
    return _whole(loaded, before, after, folder, loaded.chip_px, batch)


def _whole(model: Any, before: str, after: str, folder: str, chip_px: int, batch: int) -> Told:
    peak, start = Peak(), time.perf_counter()
    summary = ours(model, RasterPair(before, after), Path(folder, "whole.gpkg"), chip_px, batch)
    told = {"seconds": time.perf_counter() - start, "peak_mb": peak.mb}
    return told | {"chips": summary.chips, **asdict(summary.stages)}


MEASURED = {one.__name__: one for one in (compared, stubbed, modelled)}
