"""`deltavlm data`: output on stdout and stderr, and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import ROOT, Run, one_line
from tests.conftest import Scene
from tests.scripted_model import ScriptedModel

MINI = ROOT / "sample_data" / "changechat_mini"
CHANGE_MAP = "road=3,road=4,building=1,building=2," + ",".join(f"background={code}" for code in range(5, 11))


def test_check_of_a_complete_set(run: Run) -> None:
    result = run("data", "check", MINI)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["synthetic_test.json", "40", "records", "caption", "40"]
    assert lines[-1] == f"80 images named in {MINI / 'images'}: 0 missing, 0 unreadable, 0 of another size"
    assert result.stderr == f"{MINI}: no faults\n"
    summary = json.loads(run("data", "check", MINI, "--json", "-q", "--full").stdout)
    assert summary["files"][0] == {
        "name": "synthetic_test.json",
        "records": 40,
        "expected": None,
        "tasks": {"caption": 40},
    }
    assert (summary["faults"], summary["notes"], summary["pictures"]["named"]) == ([], [], 80)


def test_check_exits_with_3_and_reports_faults(run: Run) -> None:
    Path("set").mkdir()
    shutil.copy(MINI / "synthetic_test_count.json", "set/changechat_105k_test_count.json")
    result = run("data", "check", "set")
    assert result.exit_code == 3
    assert result.stdout.splitlines()[0] == "changechat_105k_test_count.json  40 of 1,929 records  count 40"
    *notes, error = result.stderr.splitlines()
    assert error == "Error: set has faults: 8 files, 80 images; --json lists all of them"
    assert any("and 77 more" in line for line in notes)
    assert any("LEVIR-CC-Dataset" in line for line in notes)
    summary = json.loads(run("data", "check", "set", "--json").stdout)
    assert len(summary["faults"]) == 88
    result = run("data", "check", "set", "-q")
    assert result.exit_code == 3
    one_line(result)


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["nosuch"], "is not a folder"),
        ([ROOT / "docs"], "no file SET_SPLIT.json"),
        ([MINI, "--size", "0"], "--size"),
        ([], "Missing argument 'DIR'"),
    ],
)
def test_check_of_bad_input_is_one_line(run: Run, args: list[object], what: str) -> None:
    result = run("data", "check", *args)
    assert result.exit_code == 2
    assert what in one_line(result)


def test_build_from_the_labels_of_the_sample(run: Run) -> None:
    """Change codes in place of LEVIR-MCI's classes, and a link to the images."""
    images = MINI / "images"
    result = run("data", "build", images, images, "-o", "set", "--class-map", CHANGE_MAP, "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["pairs"], summary["problems"], summary["notes"]) == (40, [], [])
    assert set(summary["files"]) == {
        f"built_test_{kind}.json" for kind in ("binary", "count", "loc", "dialog")
    }
    assert Path("set/images").resolve() == images
    assert not list(Path("set").glob(".*"))
    assert run("data", "check", "set").exit_code == 0
    again = run("data", "build", images, images, "-o", "set", "--class-map", CHANGE_MAP)
    assert again.exit_code == 2
    assert "exists" in one_line(again)


@pytest.fixture
def images(run: Run) -> Path:
    """Folder with two pairs and their captions; the mask of y.png has another size."""
    folder = Path("levir")
    for name in ("x.png", "y.png"):
        for folder_name in ("A", "B", "label"):
            path = folder / "test" / folder_name
            path.mkdir(parents=True, exist_ok=True)
            size = 32 if (name, folder_name) == ("y.png", "label") else 64
            pixels = np.full((size, size), 255 if folder_name == "label" else 7, np.uint8)
            Image.fromarray(pixels if folder_name == "label" else np.stack([pixels] * 3, axis=-1)).save(
                path / name
            )
    captions = [
        {"filename": name, "split": "test", "changeflag": 1, "sentences": [{"raw": "a house ."}]}
        for name in ("x.png", "y.png")
    ]
    Path("captions.json").write_text(json.dumps({"images": captions}))
    return folder


def test_build_reports_pairs_that_it_leaves_out(run: Run, images: Path) -> None:
    args = ("data", "build", images, images, "captions.json", "-o", "set", "--name", "mine")
    result = run(*args, "--copy-images")
    assert result.exit_code == 3
    *notes, error = result.stderr.splitlines()
    assert error == "Error: set is written, with 1 problem; --json lists all of them"
    assert any("test/y.png: " in line and "is 32 x 32 px, and test/A/y.png 64 x 64" in line for line in notes)
    assert [path.name for path in sorted(Path("set").iterdir())] == [
        "images",
        "mine_test.json",
        "mine_test_binary.json",
        "mine_test_count.json",
        "mine_test_dialog.json",
        "mine_test_loc.json",
    ]
    assert sorted(map(str, Path("set/images").rglob("*.png"))) == [
        "set/images/test/A/x.png",
        "set/images/test/B/x.png",
    ]
    assert not Path("set/images").is_symlink()


def test_records_of_another_set_have_its_files_and_rules(run: Run, images: Path) -> None:
    args = ("data", "build", images, images, "captions.json", "-o", "set", "--records", "changeimti")
    assert run(*args).exit_code == 3  # the pair whose mask has another size
    assert Path("set/test_task_data/count_road.json").is_file()
    assert run(*args, "--overwrite").exit_code == 3
    assert run(*args).exit_code == 2  # its files exist
    checked = run("data", "check", "set", "--size", 64, "--json")
    assert json.loads(checked.stdout)["faults"] == [], checked.stdout
    refused = run(*args, "--overwrite", "--min-area", 9)
    assert refused.exit_code == 2
    assert "does not apply to --records changeimti, which has rules of its own" in refused.stderr


def test_a_second_build_without_captions_removes_them(run: Run, images: Path) -> None:
    """Files of two builds are not mixed in one folder; files of others stay."""
    args = ("data", "build", images, images, "-o", "set", "-q")
    assert run(*args[:4], "captions.json", *args[4:]).exit_code == 3
    Path("set/built_val.json").write_text("[]")
    assert Path("set/built_test.json").exists()
    assert run(*args, "--overwrite").exit_code == 3
    assert not Path("set/built_test.json").exists()
    assert Path("set/built_val.json").exists()
    assert Path("levir/test/A/x.png").exists()


def test_images_are_never_written_through_a_link(run: Run, images: Path) -> None:
    """A link in the output may lead to originals."""
    Path("other").mkdir()
    Path("set").mkdir()
    args = ("data", "build", images, images, "-o", "set", "--overwrite")
    for target in ("other", "levir", "nowhere"):
        Path("set/images").symlink_to(Path(target).absolute())
        for extra in ((), ("--copy-images",)):
            before = sorted(Path("levir").rglob("*"))
            result = run(*args, *extra)
            if target == "levir" and not extra:
                assert result.exit_code == 3  # the same images already
                continue
            assert result.exit_code == 2
            assert "set/images exists and leads elsewhere" in one_line(result)
            assert sorted(Path("levir").rglob("*")) == before
        assert list(Path("other").iterdir()) == []
        Path("set/images").unlink()


def test_build_next_to_the_images(run: Run, images: Path) -> None:
    """IMAGES may be DIR/images itself."""
    Path("set").mkdir()
    images.rename("set/images")
    result = run("data", "build", "set/images", "set/images", "-o", "set", "--copy-images")
    assert result.exit_code == 3
    assert not Path("set/images").is_symlink()
    assert run("data", "check", "set", "--size", "64").exit_code == 0


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["nosuch", "levir"], "nosuch is not a folder"),
        (["levir", "nosuch"], "nosuch is not a folder"),
        (["levir", "levir", "nosuch.json"], "nosuch.json: no such file"),
        (["levir", "levir", MINI / "synthetic_test.json"], "is not LevirCCcaptions.json"),
        (["levir", "levir", "--split", "train"], "levir has no split 'train'; it has test"),
        (["levir", "levir", "--class-map", "roads=1"], "is not CLASS=VALUE"),
        (["levir", "levir", "--class-map", "road=1"], "none of 2 pairs can be used"),
        (["levir", "levir", "--min-area", "0"], "--min-area"),
        (["levir", "levir", "--cell-rule", "most"], "--cell-rule"),
        (["levir", "levir", "--connectivity", "6"], "--connectivity"),
        (["levir", "levir", "--name", "a/b"], "letters, digits"),
        (["levir", "levir", "--name", "changechat_105k"], "the released set's"),
        (["levir", "levir", "--llm-model", "m"], "belong together"),
        (["levir", "levir", "--llm-endpoint", "m", "--llm-model", "m"], "is not the address"),
    ],
)
@pytest.mark.usefixtures("images")
def test_build_of_bad_input_is_one_line(run: Run, args: list[object], what: str) -> None:
    result = run("data", "build", *args, "-o", "set")
    assert result.exit_code == 2, result.stderr
    assert what in one_line(result)
    assert not Path("set").exists()


def test_open_questions_and_their_key(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []

    def reply(endpoint: object, store: Path, prompt: str) -> str:
        keys.append(getattr(endpoint, "key", None))
        return '[{"question": "What is new?", "answer": "a house"}]'

    monkeypatch.setattr("deltavlm.data.endpoint.request_reply", reply)
    monkeypatch.setenv("DELTAVLM_LLM_KEY", "sk-of-somebody")
    args = (
        "data",
        "build",
        images,
        images,
        "-o",
        "set",
        "--llm-endpoint",
        "http://h/v1",
        "--llm-model",
        "m",
    )
    result = run(*args)
    assert result.exit_code == 3
    assert json.loads(Path("set/built_test_open.json").read_text())[0]["id"] == "x_open_0"
    assert keys == ["sk-of-somebody"]
    assert "sk-of" not in result.output + "".join(path.read_text() for path in Path("set").glob("*.json*"))
    result = run(*args, "--overwrite")
    assert "1 pair answered before, in set/built_open_replies.jsonl" in result.stderr
    assert len(keys) == 1


def test_a_training_set_of_a_review(run: Run, scene: Scene, bright: ScriptedModel) -> None:
    args = ("-o", "out.gpkg", "--polygons", "--overlap", 0, "--chip-size", 32)
    assert run("analyze", *scene.args, *args).exit_code == 0
    rows = [("changes", "1", "accept"), ("chips", "r00000_c00000", "accept")]
    review = [{"layer": layer, "id": name, "verdict": verdict} for layer, name, verdict in rows]
    Path("review.json").write_text(json.dumps({"review": review}))
    result = run(
        "data", "build", "--review", "out.gpkg", "--review-file", "review.json", "-o", "set", "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert "2 reviewed chips; left out 13 (not reviewed)" in result.stderr
    records = json.loads(Path("set/built_train.json").read_text())
    answers = {
        (record["image"][0], turn["value"])
        for record in records
        for turn in record["conversations"]
        if turn["from"] == "gpt"
    }
    assert (f"train/A/out_{scene.changed_chip}.png", "yes") in answers
    assert ("train/A/out_r00000_c00000.png", "no") in answers
    assert run("data", "check", "set", "--size", 32).exit_code == 0
    for args in (
        ("--review", "out.gpkg", "--split", "other"),
        ("images", "masks", "--review", "out.gpkg"),
        (),
    ):
        refused = run("data", "build", *args, "-o", "another")
        assert refused.exit_code == 2
        one_line(refused)
    refused = run("data", "build", "--review", "out.gpkg", "-o", "another")
    assert "(15 not reviewed); give the file of verdicts by --review-file" in one_line(refused)
