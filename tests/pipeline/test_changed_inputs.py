"""Images that become others: under the same address, while a run is stopped, and while it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltavlm
from deltavlm.errors import OutputError, RasterError
from deltavlm.geo.pair import ReadOptions
from deltavlm.pipeline.engine import LocalEngine
from deltavlm.pipeline.job import AnalyzeJob
from deltavlm.pipeline.journal.file import journal_path
from deltavlm.pipeline.run import run
from tests.conftest import Scene, write_tiled
from tests.jobs import interrupted_after, job_into, run_job, with_output
from tests.object_server import Objects, served
from tests.rasters import noise, write_raster
from tests.scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("empty_folder")
CHANGED = "was written over or replaced while it was read"


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Objects]:
    """Three images of 9 chips of 32 px on a server."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with served() as objects:
        images = write_images(tmp_path, ("first", "second", "third"))
        objects.contents = {name: path.read_bytes() for name, path in images.items()}
        yield objects


@pytest.fixture
def before(tmp_path: Path) -> str:
    return str(write_images(tmp_path, ("before",))["before"])


def job_of(before: str, after: str, **options: Any) -> AnalyzeJob:
    return job_into("out.geojson", (before, after), batch_size=2, **options)  # type: ignore[arg-type]


def list_of(*pairs: tuple[str, str]) -> Path:
    path = Path("pairs.csv")
    rows = [f"{before},{after},{name}" for name, (before, after) in zip("abc", pairs, strict=False)]
    path.write_text("\n".join(["before,after,id", *rows]))
    return path


def statuses(path: str) -> dict[str, tuple[str, str | None]]:
    layer = json.loads(Path(path).read_text())["features"]
    return {row["properties"]["pair_id"]: row["properties"]["status"] for row in layer}


def at_batch(number: int, action: Callable[[], object]) -> ScriptedModel:
    """Model that does something when it is asked about a batch, from 1."""
    model, asked = ScriptedModel(), 0
    encode = model.encode

    def encode_and_act(before: Any, after: Any, contexts: Any = ()) -> Any:
        nonlocal asked
        asked += 1
        if asked == number:
            action()
        return encode(before, after)

    model.encode = encode_and_act  # type: ignore[method-assign]
    return model


def write_images(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Images of 9 chips of 32 px, each of other pixels."""
    return {
        name: write_tiled(folder / f"{name}.tif", np.roll(noise(3, 96, 96), 1 + shift, axis=1))
        for shift, name in enumerate(names)
    }


def rewrite(path: Path) -> None:
    write_tiled(path, np.roll(noise(3, 96, 96), 50, axis=2))


def test_a_stopped_run_does_not_go_on_with_another_query(before: str, objects: Objects) -> None:
    """The chips answered first were those of the other image."""
    url, model = f"{objects.url}/cog?scene=", ScriptedModel()
    with interrupted_after(2, model):
        run_job(job_of(before, f"{url}first"), model)
    journal = journal_path(Path("out.geojson")).read_text()
    assert "scene" not in journal
    loaded = []

    class Engine:
        def __enter__(self) -> LocalEngine:
            loaded.append(True)
            return LocalEngine(model)

        def __exit__(self, *_: object) -> None:
            pass

    with pytest.raises(OutputError, match=r"other settings \(identity\.address, "):
        run(job_of(before, f"{url}second"), Engine())  # type: ignore[arg-type]
    assert not loaded  # found before the model is loaded
    with pytest.raises(OutputError, match=r"other settings \(options\.chip_px\)"):
        run(job_of(before, f"{url}first", chip_px=48), Engine())  # type: ignore[arg-type]
    assert not loaded
    result = run_job(job_of(before, f"{url}first"), model)
    assert (result.summary.resumed, result.chips) == (4, 9)


def test_a_stopped_run_does_not_go_on_with_a_replaced_object(before: str, objects: Objects) -> None:
    url, model = f"{objects.url}/cog?scene=first", ScriptedModel()
    with interrupted_after(2, model):
        run_job(job_of(before, url), model)
    first = objects.contents["first"]
    objects.contents["first"] = objects.contents["second"]
    with pytest.raises(OutputError, match=r"other settings \(identity\.files\)"):
        run_job(job_of(before, url), model)
    objects.contents["first"] = first
    objects.headers = {"ETag": ""}  # a server that tells less tells nothing else
    assert run_job(job_of(before, url), model).summary.resumed == 4


def test_a_stopped_run_goes_on_with_a_renewed_signature(before: str, objects: Objects) -> None:
    url, model = f"{objects.url}/first?X-Amz-Date=2026&X-Amz-Signature=", ScriptedModel()
    with interrupted_after(2, model):
        run_job(job_of(before, f"{url}01"), model)
    assert run_job(job_of(before, f"{url}02"), model).summary.resumed == 4


def test_pairs_whose_address_or_object_changed_start_over(
    before: str, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    """A pair whose query had changed was "still" the same."""
    url, model = f"{objects.url}/cog?scene=", ScriptedModel()
    pairs = [(before, f"{url}first"), (before, f"{url}second"), (before, f"{url}third")]
    with interrupted_after(10, model):
        run_job(job_into("out.geojson", list_of(*pairs), batch_size=2, layer="pairs"), model)
    pairs[0] = (before, f"{url}second")
    objects.contents["second"] = objects.contents["first"]
    result = run_job(job_into("out.geojson", list_of(*pairs), batch_size=2, layer="pairs"), model)
    assert result.summary.resumed == 2
    restarted = [r.getMessage() for r in caplog.records if "it starts over" in r.getMessage()]
    assert [text.split(":")[0] for text in restarted] == ["pair a", "pair b"]
    assert statuses("out.geojson") == dict.fromkeys("abc", "answered")


@pytest.mark.parametrize("replaced", [False, True], ids=["written over", "replaced"])
def test_an_image_that_changes_in_mid_run_is_noticed_at_the_end(scene: Scene, replaced: bool) -> None:
    """The output held answers about two images, without a word."""

    def change() -> None:
        status = scene.after.stat()
        target = scene.after.with_name("other.tif") if replaced else scene.after
        rewrite(target)
        if replaced:
            os.utime(target, ns=(1, status.st_mtime_ns))
            target.rename(scene.after)

    with pytest.raises(RasterError, match=rf"after\.tif: {CHANGED}.*analyze it again"):
        run_job(job_of(*scene.args), at_batch(2, change))
    assert not list(Path().iterdir())  # neither output nor journal
    result = run_job(job_of(*scene.args), ScriptedModel())
    assert (result.summary.resumed, result.failed) == (0, 0)


def test_an_object_that_changes_in_mid_run_is_noticed_at_the_end(before: str, objects: Objects) -> None:
    model = at_batch(2, lambda: objects.contents.update(first=objects.contents["second"]))
    with pytest.raises(RasterError, match=rf"/cog: {CHANGED}"):
        run_job(job_of(before, f"{objects.url}/cog?scene=first"), model)
    assert not list(Path().iterdir())


def test_a_file_that_changes_before_the_model_is_loaded_is_noticed(scene: Scene) -> None:
    class Engine:
        def __enter__(self) -> LocalEngine:
            rewrite(scene.after)  # the pair is open by then
            return LocalEngine(ScriptedModel())

        def __exit__(self, *_: object) -> None:
            pass

    with pytest.raises(RasterError, match=CHANGED):
        run(job_of(*scene.args), Engine())  # type: ignore[arg-type]


def test_a_pair_of_a_list_that_changes_in_mid_run_fails(tmp_path: Path) -> None:
    images = write_images(tmp_path, "abcd")
    pairs = list_of(*((str(images["d"]), str(images[name])) for name in "abc"))
    job = job_into("out.geojson", pairs, batch_size=2, layer="pairs")
    # batch 5 has the first chip of the second pair, whose last ones are not read in advance yet
    result = run_job(job, at_batch(5, lambda: rewrite(images["b"])))
    failed = result.pairs["b"]
    assert CHANGED in failed.reason
    assert (result.chips, failed.chips) == (18, 0)  # its chips are in no count
    assert statuses("out.geojson") == {"a": "answered", "b": "failed", "c": "answered"}
    again = run_job(with_output(job, retry_failed=True), ScriptedModel())
    assert (again.summary.resumed, again.chips) == (18, 27)
    assert statuses("out.geojson") == dict.fromkeys("abc", "answered")


def test_in_a_folder_of_outputs_a_changed_pair_has_none(tmp_path: Path) -> None:
    images = write_images(tmp_path, "abc")
    pairs = list_of(*((str(images["c"]), str(images[name])) for name in "ab"))
    job = job_into("out/", pairs, batch_size=2)
    result = run_job(job, at_batch(2, lambda: rewrite(images["a"])))
    assert CHANGED in result.pairs["a"].reason
    assert (result.chips, sorted(path.name for path in Path("out").iterdir())) == (9, ["b.gpkg"])


def test_a_stream_ends_with_an_error(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RasterError, match=CHANGED):
        run_job(job_into(None, scene, batch_size=2), at_batch(2, lambda: rewrite(scene.after)))
    assert capsys.readouterr().out


def test_a_cloud_mask_is_known_by_its_whole_address_and_time(
    before: str, objects: Objects, tmp_path: Path
) -> None:
    """Whether it is of a pair of a list, or of all pairs."""
    write_raster(tmp_path / "mask.tif", np.zeros((1, 96, 96), np.uint8))
    objects.contents |= dict.fromkeys(("m1", "m2"), (tmp_path / "mask.tif").read_bytes())
    url, model = f"{objects.url}/mask?scene=", ScriptedModel()
    after = f"{objects.url}/cog?scene=first"

    def job(mask: str) -> AnalyzeJob:
        return job_of(before, after, read=ReadOptions(after_cloud_mask=mask))

    with interrupted_after(2, model):
        run_job(job(f"{url}m1:values=7"), model)
    assert "scene" not in journal_path(Path("out.geojson")).read_text()
    for other in (f"{url}m2:values=7", f"{url}m1:values=8"):
        with pytest.raises(OutputError, match=r"other settings \("):
            run_job(job(other), model)
    assert run_job(job(f"{url}m1:values=7"), model).summary.resumed == 4
    mask = tmp_path / "mask.tif"
    change = at_batch(2, lambda: write_raster(mask, np.ones((1, 96, 96), np.uint8)))
    with pytest.raises(RasterError, match=rf"mask\.tif: {CHANGED}"):
        run_job(with_output(job(f"{mask}:values=7"), path=Path("new.geojson")), change)


def test_an_area_that_changes_starts_the_pairs_of_a_list_over(scene: Scene, tmp_path: Path) -> None:
    aoi, model = tmp_path / "aoi.geojson", ScriptedModel()

    def draw(share: float) -> None:
        with deltavlm.open_pair(*scene.args) as reader:
            west, south, east, north = reader.geobox.footprint.bounds
            crs = f"urn:ogc:def:crs:EPSG::{reader.geobox.crs.to_epsg()}"
        east = west + share * (east - west)
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        name = {"type": "name", "properties": {"name": crs}}
        aoi.write_text(json.dumps({"type": "Polygon", "coordinates": [ring], "crs": name}))

    draw(1.0)
    read = ReadOptions(aoi=aoi)
    pairs = list_of(scene.args, scene.args)  # type: ignore[arg-type]
    job = job_into("out.geojson", pairs, batch_size=5, layer="pairs", read=read)
    with interrupted_after(2, model):
        run_job(job, model)
    draw(0.5)
    result = run_job(job, model)
    assert result.summary.resumed == 0
    single = job_of(*scene.args, read=read)
    with interrupted_after(2, model):
        run_job(with_output(single, read, path=Path("one.geojson")), model)
    draw(0.6)
    with pytest.raises(OutputError, match=r"other settings \(aoi"):
        run_job(with_output(single, read, path=Path("one.geojson")), model)
