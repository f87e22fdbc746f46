"""Two processes learn what one learns: the same losses at the same total batch, whole or sharded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltavlm.training.checkpoints import load_state
from tests.seven import eight_examples, seven_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script run alone and by torchrun, at the same time."""
    folder = tmp_path_factory.mktemp("two")
    eight_examples(folder / "set")
    seven_checkpoint(folder / "fresh")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    script = ["-m", "tests.training.two_processes", str(folder)]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    started = [
        subprocess.Popen(
            [sys.executable, *how, *script, str(folder / name)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, how in (("one", []), ("two", launcher))
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    for process, text in zip(started, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return folder


def figures(folder: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    left_out = {"pairs_per_s", "kind", "phase"}
    return [{k: v for k, v in one.items() if k not in left_out} for one in records if one["kind"] == kind]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(runs: Path, way: str) -> None:
    """Contrastive and matching losses over all processes' pairs, words over all tokens; then validation. The
    two were killed on the way, and went on."""
    one, two = runs / "one" / "ddp", runs / "two" / way
    for kind in ("train", "validation"):
        alone, together = figures(one, kind), figures(two, kind)
        assert len(alone) == len(together) > 0
        for left, right in zip(alone, together, strict=True):
            assert right == pytest.approx({key: left[key] for key in right}, rel=2e-4, abs=1e-6)
            if way == "ddp":
                assert right.keys() == left.keys()
    assert any("contrastive" in step for step in figures(two, "train"))
    assert any("words" in step for step in figures(two, "train"))


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_checkpoints_of_two_processes_are_those_of_one(runs: Path, way: str) -> None:
    alone = load_state(runs / "one" / "ddp" / "tune.pt")["weights"]
    together = load_state(runs / "two" / way / "tune.pt")["weights"]
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
