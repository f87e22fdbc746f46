"""`--engine ray` on a small cluster of this machine: the same bytes as one process gives, whatever dies."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

import deltavlm
from deltacli.main import app
from deltavlm.cluster import worker
from deltavlm.cluster.session import LOCAL, set_ray_environment
from deltavlm.cluster.worker import ReadTask, pair_fingerprint, read_chips_of_task
from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair
from deltavlm.geo.registration import Registration
from deltavlm.model.kinds import KINDS
from deltavlm.pipeline.job import AnalyzeOptions
from deltavlm.pipeline.journal.store import Journal
from tests import workers
from tests.chat_server import COUNT, Answer, Asked, chat_server
from tests.cli.conftest import Run
from tests.conftest import Scene
from tests.pairs import features, write_pairs
from tests.rasters import write_raster
from tests.scripted_model import ScriptedModel
from tests.text_reader import KIND

pytestmark = pytest.mark.slow

SMALL = ("--chip-size", 32, "--batch-size", 2)
RAY = ("--engine", "ray", "--actors", 2, "--actor-cpus", 1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Four CPUs by name, whatever the machine has."""
    set_ray_environment(LOCAL)
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture
def model_there(cluster: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`model_there(loader)`: what the workers hold."""
    monkeypatch.setattr("deltavlm.cluster.session._connected", lambda address: nullcontext())

    def use(loader: Callable[..., ScriptedModel]) -> None:
        monkeypatch.setattr("deltavlm.cluster.worker.load_model_on_worker", loader)

    use(workers.scripted)
    return use


def same(one: str, other: str) -> bool:
    return Path(one).read_bytes() == Path(other).read_bytes()


@pytest.fixture
def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals have the same key, which is random otherwise, so that they can be compared."""
    fixed = SimpleNamespace(token_hex=lambda count: "0f" * count)
    monkeypatch.setattr("deltavlm.pipeline.journal.header.secrets", fixed)


def test_one_pair(run: Run, scene: Scene, model_there: Callable[..., None]) -> None:
    """Workers find a cloud mask by its absolute path."""
    classes = np.full((1, 96, 160), 4, np.uint8)
    classes[0, :32, :48] = 9
    write_raster(Path("scl.tif"), classes)
    args = (*scene.args, "--after-cloud-mask", "scl.tif:scl")
    assert run("analyze", *args, "-o", "here.geojson", *SMALL).exit_code == 0
    assert '"cloud_share": 0.5' in Path("here.geojson").read_text()
    result = run("analyze", *args, "-o", "there.geojson", *SMALL, *RAY)
    assert result.exit_code == 0, result.stderr
    assert "held by 2 actors" in result.stderr
    assert same("here.geojson", "there.geojson")


@pytest.mark.usefixtures("one_key")
def test_many_pairs_with_holes(run: Run, tmp_path: Path, model_there: Callable[..., None]) -> None:
    """The journal too is the same, line by line: it stays where something failed."""
    table = write_pairs(tmp_path / "in", 7, chips=3, broken=[2])
    hole = np.zeros((3, 32, 96), np.uint8)
    write_raster(tmp_path / "in/a4.tif", hole, nodata=0)
    for name in ("b5.tif", "a5.tif", "b6.tif", "a6.tif"):
        write_raster(tmp_path / "in" / name, hole + 77)  # one picture, many times
    for name, more in (("here", ()), ("there", RAY)):
        result = run("analyze", "--pairs", table, "-o", f"{name}.geojson", *SMALL, *more)
        assert result.exit_code == 3, result.stderr
    assert same("here.geojson", "there.geojson")
    assert same("here.geojson.journal.jsonl", "there.geojson.journal.jsonl")
    told = Path("there.geojson.journal.jsonl").read_text()
    assert "nodata" in told
    assert told.count('"digest": ') - len(set(re.findall(r'"digest": "(\w+)"', told))) == 5
    assert '"failed": ' in told


@pytest.mark.parametrize("cascade", [(), ("--cascade",)])
def test_evidence_travels_with_answers(
    run: Run,
    scene: Scene,
    model_there: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    cascade: tuple[str, ...],
) -> None:
    monkeypatch.setattr("deltavlm.model.kinds.KINDS", {**KINDS, **KIND})
    monkeypatch.setitem(vars(deltavlm), "load_model", lambda name, runtime: workers.by_name(name, runtime, 1))
    model_there(workers.by_name)
    args = ("--model", "text:any", "--evidence", "nano", "--polygons", *SMALL, *cascade)
    for folder, more in (("here", ()), ("there", RAY)):
        Path(folder).mkdir()
        result = run("analyze", *scene.args, "-o", f"{folder}/out.geojson", *args, *more)
        assert result.exit_code == 0, result.stderr
    assert "model text:any with evidence of scripted" in result.stderr
    assert '"evidence_new_buildings": 2' in Path("there/out.geojson").read_text()
    for name in ("out.geojson", "out.changes.geojson"):
        assert same(f"here/{name}", f"there/{name}"), name


def test_masks_travel_with_answers(
    run: Run, scene: Scene, model_there: Callable[..., None], tmp_path: Path
) -> None:
    """And where a chip has no data travels with its pixels."""
    hole = np.zeros((3, 96, 160), np.uint8)
    hole[:, 5:, :90] = 7
    before = write_raster(tmp_path / "hole.tif", hole, nodata=0)
    pairs = write_pairs(tmp_path / "in", 4, chips=3)
    for folder, more in (("here", ()), ("there", RAY)):
        Path(folder).mkdir()
        args = ("--polygons", *SMALL, *more)
        rasters = ("--mask", f"{folder}/mask.tif", "--probability", f"{folder}/probability.tif")
        result = run("analyze", before, scene.after, "-o", f"{folder}/one.geojson", *args, *rasters)
        assert result.exit_code == 0, result.stderr
        assert run("analyze", "--pairs", pairs, "-o", f"{folder}/many.geojson", *args).exit_code == 0
    names = ("one.geojson", "one.changes.geojson", "mask.tif", "probability.tif", "many.geojson")
    for name in (*names, "many.changes.geojson"):
        assert same(f"here/{name}", f"there/{name}"), name
    with rasterio.open("there/mask.tif") as raster:
        assert {0, 1, 255} <= set(raster.read(1).ravel().tolist())


@pytest.mark.usefixtures("one_key")
def test_batches_that_do_not_fit(
    run: Run, scene: Scene, model: ScriptedModel, model_there: Callable[..., None], tmp_path: Path
) -> None:
    """Groups that were sent before the first came back are asked again, as one process would have asked."""
    table = write_pairs(tmp_path / "in", 3, chips=5, broken=[1])
    model.most = 1
    model_there(workers.small)
    for name, more in (("here", ()), ("there", RAY)):
        args = ("--pairs", table, "-o", f"{name}.gpkg", "--chip-size", 32, "--batch-size", 3)
        assert run("analyze", *args, *more).exit_code == 3
    assert same("here.gpkg.journal.jsonl", "there.gpkg.journal.jsonl")


@pytest.mark.parametrize("first_here", [True, False])
def test_a_run_is_gone_on_with_by_the_other_engine(
    run: Run,
    scene: Scene,
    model_there: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    first_here: bool,
) -> None:
    assert run("analyze", *scene.args, "-o", "whole.geojson", *SMALL).exit_code == 0
    written, calls = Journal.add, 0

    def stopping(self: Journal, *args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        written(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", stopping)
        result = run("analyze", *scene.args, "-o", "out.geojson", *SMALL, *(() if first_here else RAY))
        assert "6 chips kept in out.geojson.journal.jsonl; the same command resumes" in result.stderr
    result = run("analyze", *scene.args, "-o", "out.geojson", *SMALL, *(RAY if first_here else ()))
    assert result.exit_code == 0, result.stderr
    assert "resuming: 6 of 15 chips done" in result.stderr
    assert same("whole.geojson", "out.geojson")


def test_a_worker_that_dies_is_replaced(
    run: Run,
    scene: Scene,
    model_there: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert run("analyze", *scene.args, "-o", "here.geojson", *SMALL).exit_code == 0
    model_there(workers.dying_once)
    once = tmp_path / "once"
    args = (*scene.args, "-o", "there.geojson", *SMALL, *RAY, "--gdal-config", f"DELTAVLM_TEST_ONCE={once}")
    result = run("analyze", *args)
    assert once.exists()
    assert result.exit_code == 0, result.stderr
    assert "a worker has died while 2 chips were asked; they are asked again" in result.stderr
    assert same("here.geojson", "there.geojson")


def test_chips_that_kill_every_worker_are_given_up(
    run: Run, scene: Scene, model_there: Callable[..., None]
) -> None:
    model_there(workers.mortal)
    result = run("analyze", *scene.args, "-o", "out.geojson", *SMALL, *RAY)
    assert result.exit_code == 3
    assert "the worker that was asked has died, 3 times" in result.stderr.splitlines()[-1]
    chips = [one["properties"] for one in json.loads(Path("out.geojson").read_text())["features"]]
    failed = [chip["chip_id"] for chip in chips if chip["status"] == "error"]
    assert scene.changed_chip in failed
    assert len(failed) == 2  # a group
    assert {chip["status"] for chip in chips if chip["chip_id"] not in failed} == {"answered"}


def test_a_reader_says_what_it_saw_and_where_the_pixels_are(scene: Scene) -> None:
    pair = RasterPair(str(scene.before), str(scene.after))
    with open_pair(pair) as reader:
        unit = ReadTask(
            pair,
            ReadOptions(),
            reader.registration,
            None,
            pair_fingerprint(reader),
            ((0, 0), (0, 3), (2, 4)),
            2,
        )
    seen, *pieces = read_chips_of_task(unit, AnalyzeOptions(chip_px=32))
    assert [(status, reason, place) for status, _, reason, place, *_ in seen] == [
        ("answered", "", (0, 0)),
        ("answered", "", (0, 1)),
        ("answered", "", (1, 0)),
    ]
    assert len({picture for *_, picture, _, _, _ in seen}) == 3
    assert {holes for *_, holes, _, _ in seen} == {b""}
    assert {shift_px for *_, shift_px, _ in seen} == {0.0}
    assert {cloud_share for *_, cloud_share in seen} == {None}
    assert [piece.shape for piece in pieces] == [(2, 2, 3, 32, 32), (1, 2, 3, 32, 32)]


@pytest.mark.parametrize("gone", [True, False])
def test_a_reader_with_other_files_says_so(scene: Scene, tmp_path: Path, gone: bool) -> None:
    """Machines without a folder in common may have none of that name, or another."""
    with open_pair(RasterPair(str(scene.before), str(scene.after))) as reader:
        mark = pair_fingerprint(reader)
    other = tmp_path / "other.tif"
    if not gone:
        write_raster(other, np.ones((3, 96, 128), np.uint8))
    unit = ReadTask(
        RasterPair(str(scene.before), str(other)),
        ReadOptions(),
        Registration(),
        None,
        mark,
        ((0, 0), (2, 4)),
        1,
    )
    try:
        seen, *pieces = read_chips_of_task(unit, AnalyzeOptions(chip_px=32))
    finally:
        worker._cache.close()  # a worker keeps it open until the next
    assert [one[0] for one in seen] == ["unreadable", "unreadable"]
    assert ("no such file" if gone else "is another file") in seen[0][2]
    assert f" (on {socket.gethostname()})" in seen[0][2]
    assert [piece.size for piece in pieces] == [0, 0]


def test_workers_ask_a_server(
    cluster: None, scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where it refuses a question: the error comes back from the worker."""
    monkeypatch.setattr("deltavlm.cluster.session._connected", lambda address: nullcontext())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)

    def script(asked: Asked) -> Answer | None:
        return (
            Answer(status=400, body={"error": "too long"})
            if asked.prompt == COUNT and asked.changed
            else None
        )

    with chat_server(script) as server:
        for output, engine in (("local.geojson", ()), ("ray.geojson", RAY)):
            words = ("analyze", *scene.args, "--model", server.name, *SMALL, *engine, "-o", output)
            result = CliRunner().invoke(app, [str(word) for word in words])
            assert result.exit_code == 3, result.stderr
    assert same("local.geojson", "ray.geojson")
    statuses = [each["properties"]["status"] for each in features("ray.geojson")]
    assert (statuses.count("error"), statuses.count("answered")) == (1, 14)
