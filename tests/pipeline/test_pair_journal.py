"""A run over many pairs may be cut anywhere: what it has found is gone on with, to the same lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltavlm.config import shipped_config
from deltavlm.errors import OutputError
from deltavlm.geo.pair import ReadOptions
from deltavlm.pipeline.analyze import AnalyzeOptions
from deltavlm.pipeline.layers import ChipResult
from deltavlm.pipeline.many import Run, analyze_pairs
from deltavlm.pipeline.pair_journal import open_pair_journal
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.provenance import pairs_settings
from deltavlm.tasks.questions import load_questions
from tests.rasters import moved, spoil, write_raster
from tests.scripted_model import ScriptedModel

SPECS = load_questions(shipped_config("questions.yaml"))
OPTIONS = AnalyzeOptions(chip_px=32, batch_size=4)
READ = ReadOptions()


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Four pairs of three chips, the second of which is no raster; a fifth is not there."""
    rng = np.random.default_rng(5)
    found = []
    for n in range(5):
        before, after = (tmp_path / f"{date}{n}.tif" for date in "ba")
        found.append(Pair(f"p{n}", str(before), str(after)))
        if n == 4:
            continue
        pixels = rng.integers(1, 255, (3, 32, 96)).astype(np.uint8)
        write_raster(before, pixels, transform=moved(96 * n, 0))
        pixels[:, 4:9, 40:50] = 255
        write_raster(after, pixels, transform=moved(96 * n, 0))
        if n == 1:
            after.write_bytes(b"no raster")
    return found


def gone_on(
    path: Path, pairs: list[Pair], model: ScriptedModel | None = None, read: ReadOptions = READ, **flags: bool
) -> tuple[list[ChipResult], Run]:
    model = model or ScriptedModel()
    known = pairs_settings(READ, model, OPTIONS)
    with open_pair_journal(path, known, SPECS, pairs, (32, 0), **flags) as journal:
        run = analyze_pairs(pairs, read, model, SPECS, journal, OPTIONS)
        return list(journal.results()), run


def test_cut_at_any_byte_it_ends_as_an_unbroken_run(tmp_path: Path, pairs: list[Pair]) -> None:
    path = tmp_path / "journal.jsonl"
    model = ScriptedModel()
    results, run = gone_on(path, pairs, model)
    assert model.batches == [4, 4, 1]
    assert [result.pair for result in results] == ["p0"] * 3 + ["p2"] * 3 + ["p3"] * 3
    assert [outcome.status for outcome in run.outcomes.values()] == [
        "answered",
        "failed",
        "answered",
        "answered",
        "failed",
    ]
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 997), len(whole) - 1, len(whole)]:
        path.write_bytes(whole[:cut])
        model = ScriptedModel()
        again, told = gone_on(path, pairs, model)
        assert again == results, cut
        assert told.outcomes == run.outcomes, cut
        assert path.read_bytes() == whole, cut
        assert model.batches in ([4, 4, 1], [4, 1], [1], []), cut


def test_why_a_chip_failed_is_known_after_the_run(tmp_path: Path, pairs: list[Pair]) -> None:
    """Its pair is not opened again where all its chips are there, and opened where some are not."""
    path = tmp_path / "journal.jsonl"
    pixels = np.random.default_rng(6).integers(1, 255, (3, 32, 96)).astype(np.uint8)
    blocks = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    write_raster(Path(pairs[0].after), pixels, interleave="pixel", photometric="RGB", **blocks)
    spoil(Path(pairs[0].after), [(0, 0)])
    _, run = gone_on(path, pairs[:1])
    assert run.outcomes["p0"].status == "partly"
    assert "r00000_c00000: " in (run.outcomes["p0"].why or "")
    lines = path.read_bytes().splitlines(keepends=True)
    _, again = gone_on(path, pairs[:1])
    assert again.outcomes == run.outcomes
    failed = json.loads(lines[2]) | {"end": 4}  # a group of the first chip alone
    path.write_bytes(b"".join([*lines[:2], json.dumps(failed).encode() + b"\n"]))
    model = ScriptedModel()
    _, again = gone_on(path, pairs[:1], model)
    assert model.batches == [2]
    assert again.outcomes == run.outcomes


def test_a_pair_that_reads_otherwise_when_it_is_gone_on_with_is_refused(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    path = tmp_path / "journal.jsonl"
    gone_on(path, pairs)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:8]))  # header, p0, no p1, p2, and a group of four chips
    with pytest.raises(OutputError, match=r"a part of pair 'p2' with another inputs\.scale"):
        gone_on(path, pairs, read=replace(READ, scale="none"))
    gone_on(path, pairs)


def test_failed_pairs_are_opened_again_when_asked_or_when_their_files_changed(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    path = tmp_path / "journal.jsonl"
    gone_on(path, pairs)
    good = (Path(pairs[0].after).read_bytes(), Path(pairs[0].before).read_bytes())
    for location, content in zip((pairs[4].after, pairs[4].before), good, strict=True):
        Path(location).write_bytes(content)
    results, run = gone_on(path, pairs)
    assert run.outcomes["p4"].status == "answered"  # its files were not there, and now are
    assert run.outcomes["p1"].status == "failed"
    model = ScriptedModel()
    again, run = gone_on(path, pairs, model, retry=True)
    assert again == results
    assert model.batches == []
    assert "p1" in run.outcomes


def test_files_may_go_when_a_pair_is_whole_and_not_before(tmp_path: Path, pairs: list[Pair]) -> None:
    path = tmp_path / "journal.jsonl"
    results, _ = gone_on(path, pairs)
    for pair in pairs:
        Path(pair.before).unlink(missing_ok=True)
    again, run = gone_on(path, pairs)
    assert again == results
    assert run.outcomes["p0"].status == "answered"
    moved_on = [replace(pairs[0], after=pairs[2].after), *pairs[1:]]
    again, run = gone_on(path, moved_on)
    assert run.outcomes["p0"].status == "failed"  # it is another pair now, and not there
    assert again == results[3:]
