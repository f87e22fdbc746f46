"""Distributed training: two processes learn what one learns at the same global batch size."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deltavlm.training import build
from deltavlm.training.checkpoints import load_state
from tests.seven import eight_examples, seven_checkpoint
from tests.tiny_hf import build as build_tiny
from tests.training import two_adapters, two_processes
from tests.training.made_pairs import write_set

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_rank(rank: int, port: int, folder: Path) -> None:
    """The script as one of two processes, with the variables that torchrun sets."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    two_processes.main(folder, folder / "two")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the script's runs, in this process and at the same time in two."""
    if sys.platform != "linux":
        pytest.skip("forks with torch loaded")
    folder = tmp_path_factory.mktemp("two")
    eight_examples(folder / "set")
    seven_checkpoint(folder / "fresh")
    port = free_port()
    context = multiprocessing.get_context("fork")  # a new start would import torch and transformers anew
    processes = [
        context.Process(target=run_rank, args=(rank, port, folder), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("shipped_config", "load"):  # the script replaces them
            patch.setattr(build, name, getattr(build, name))
        two_processes.main(folder, folder / "one")
    for process in processes:
        process.join(timeout=900)
        assert process.exitcode == 0
    return folder


def start_two(script: str, folder: Path) -> subprocess.Popen[str]:
    """Two processes of a script under torchrun, whose runs go to `folder`/two."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", script, str(folder), str(folder / "two")],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen[str]) -> None:
    text, _ = process.communicate(timeout=900)
    assert process.returncode == 0, text[-3000:]


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    ignored = {"pairs_per_s", "kind", "phase", "precision"}
    return [
        {key: value for key, value in record.items() if key not in ignored}
        for record in records
        if record["kind"] == kind
    ]


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(runs: Path, sharding: str) -> None:
    """Contrastive and matching losses are over the pairs of all processes, answers over all tokens; then
    validation. The run of two processes was killed halfway and resumed."""
    single, double = runs / "one" / "ddp", runs / "two" / sharding
    for kind in ("train", "validation"):
        alone, together = metrics(single, kind), metrics(double, kind)
        assert len(alone) == len(together) > 0
        for expected, record in zip(alone, together, strict=True):
            assert record == pytest.approx({key: expected[key] for key in record}, rel=2e-4, abs=1e-6)
            if sharding == "ddp":
                assert record.keys() == expected.keys()
    assert any("contrastive" in step for step in metrics(double, "train"))
    assert any("words" in step for step in metrics(double, "train"))


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_checkpoints_of_two_processes_are_those_of_one(runs: Path, sharding: str) -> None:
    alone = load_state(runs / "one" / "ddp" / "tune.pt")["weights"]
    together = load_state(runs / "two" / sharding / "tune.pt")["weights"]
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_two_processes_train_the_adapter_of_one(tmp_path: Path) -> None:
    """An adapter of a model hf:...; the run of two processes was killed halfway and resumed."""
    pytest.importorskip("peft")
    build_tiny("qwen2_5_vl", tmp_path / "base")
    write_set(tmp_path / "set")
    process = start_two("tests.training.two_adapters", tmp_path)
    two_adapters.main(tmp_path, tmp_path / "one")
    wait_for(process)
    alone, together = (metrics(tmp_path / name, "train") for name in ("one", "two"))
    assert len(alone) == len(together) == 4
    for expected, record in zip(alone, together, strict=True):
        assert record == pytest.approx(expected, rel=2e-4, abs=1e-6)
    first, second = (
        load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("one", "two")
    )
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
