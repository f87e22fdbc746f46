"""Journal of a list of pairs: cut off at any byte, it resumes to the same lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltavlm.errors import OutputError
from deltavlm.geo.pair import ReadOptions
from deltavlm.pipeline.journal.store import open_journal
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.provenance import journal_settings
from deltavlm.pipeline.results import ChipResult
from deltavlm.pipeline.run_result import RunResult
from tests.jobs import analyzed, list_job, with_output
from tests.rasters import moved, spoil, write_raster
from tests.scripted_model import ScriptedModel

READ = ReadOptions()


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Four pairs of three chips, the second of which is no raster; a fifth is not there."""
    rng = np.random.default_rng(5)
    pairs = []
    for n in range(5):
        before, after = (tmp_path / f"{date}{n}.tif" for date in "ba")
        pairs.append(Pair(f"p{n}", str(before), str(after)))
        if n == 4:
            continue
        pixels = rng.integers(1, 255, (3, 32, 96)).astype(np.uint8)
        write_raster(before, pixels, transform=moved(96 * n, 0))
        pixels[:, 4:9, 40:50] = 255
        write_raster(after, pixels, transform=moved(96 * n, 0))
        if n == 1:
            after.write_bytes(b"no raster")
    return pairs


def resumed(
    path: Path,
    pairs: list[Pair],
    model: ScriptedModel | None = None,
    read: ReadOptions = READ,
    **output: bool,
) -> tuple[list[ChipResult], RunResult]:
    """Results of a run whose journal says that the pairs are read as by `READ`."""
    model = model or ScriptedModel()
    job = with_output(list_job(pairs, batch_size=4), READ, **output)
    with open_journal(path, job, journal_settings(job, model)) as journal:
        result = analyzed(replace(job, read=read), model, journal)
        return list(journal.results()), result


@pytest.mark.usefixtures("same_key")
def test_a_journal_truncated_at_any_byte_resumes_to_the_same_lines(tmp_path: Path, pairs: list[Pair]) -> None:
    path = tmp_path / "journal.jsonl"
    model = ScriptedModel()
    results, run = resumed(path, pairs, model)
    assert model.batches == [4, 4, 1]
    assert [result.pair for result in results] == ["p0"] * 3 + ["p2"] * 3 + ["p3"] * 3
    assert [pair.status for pair in run.pairs.values()] == [
        "answered",
        "failed",
        "answered",
        "answered",
        "failed",
    ]
    content = path.read_bytes()
    for cut in [*range(0, len(content), 997), len(content) - 1, len(content)]:
        path.write_bytes(content[:cut])
        model = ScriptedModel()
        second, second_run = resumed(path, pairs, model)
        assert second == results, cut
        assert second_run.pairs == run.pairs, cut
        assert path.read_bytes() == content, cut
        assert model.batches in ([4, 4, 1], [4, 1], [1], []), cut


def test_the_reason_of_a_failed_chip_is_in_the_result(tmp_path: Path, pairs: list[Pair]) -> None:
    """Its pair is not opened again if all its chips are in the journal, and is opened if some are not."""
    path = tmp_path / "journal.jsonl"
    pixels = np.random.default_rng(6).integers(1, 255, (3, 32, 96)).astype(np.uint8)
    blocks = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    write_raster(Path(pairs[0].after), pixels, interleave="pixel", photometric="RGB", **blocks)
    spoil(Path(pairs[0].after), [(0, 0)])
    _, run = resumed(path, pairs[:1])
    assert run.pairs["p0"].status == "partly"
    assert "r00000_c00000: " in (run.pairs["p0"].failure or "")
    lines = path.read_bytes().splitlines(keepends=True)
    _, second = resumed(path, pairs[:1])
    assert second.pairs == run.pairs
    failed = json.loads(lines[2]) | {"end": 4}  # a group of the first chip alone
    path.write_bytes(b"".join([*lines[:2], json.dumps(failed).encode() + b"\n"]))
    model = ScriptedModel()
    _, second = resumed(path, pairs[:1], model)
    assert model.batches == [2]
    assert second.pairs == run.pairs


def test_a_pair_that_reads_differently_on_resuming_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    path = tmp_path / "journal.jsonl"
    resumed(path, pairs)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:8]))  # header, p0, no p1, p2, and a group of four chips
    with pytest.raises(OutputError, match=r"a part of pair 'p2' with another inputs\.scale"):
        resumed(path, pairs, read=replace(READ, scale="none"))
    resumed(path, pairs)


def test_failed_pairs_are_opened_again_on_request_or_when_their_files_changed(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    path = tmp_path / "journal.jsonl"
    resumed(path, pairs)
    good = (Path(pairs[0].after).read_bytes(), Path(pairs[0].before).read_bytes())
    for location, content in zip((pairs[4].after, pairs[4].before), good, strict=True):
        Path(location).write_bytes(content)
    results, run = resumed(path, pairs)
    assert run.pairs["p4"].status == "answered"  # its files were not there, and now are
    assert run.pairs["p1"].status == "failed"
    model = ScriptedModel()
    second, run = resumed(path, pairs, model, retry_failed=True)
    assert second == results
    assert model.batches == []
    assert "p1" in run.pairs


def test_files_of_a_complete_pair_may_be_removed(tmp_path: Path, pairs: list[Pair]) -> None:
    path = tmp_path / "journal.jsonl"
    results, _ = resumed(path, pairs)
    for pair in pairs:
        Path(pair.before).unlink(missing_ok=True)
    second, run = resumed(path, pairs)
    assert second == results
    assert run.pairs["p0"].status == "answered"
    replaced = [replace(pairs[0], after=pairs[2].after), *pairs[1:]]
    second, run = resumed(path, replaced)
    assert run.pairs["p0"].status == "failed"  # it is another pair now, and not there
    assert second == results[3:]
