"""Checks of the documentation against the code: links, columns, flags, exit codes, tensors, the file tree."""

from __future__ import annotations

import json
import re
import runpy
import signal
from functools import cache
from pathlib import Path

import pytest
import torch
import typer
import yaml
from huggingface_hub import ModelCard

from deltacli.main import CLOSED_PIPE, app
from deltacli.metrics import RunMetrics
from deltacli.signals import NAMES as SIGNALS
from deltavlm import __version__
from deltavlm.config import load, shipped_config
from deltavlm.errors import DeltaVLMError
from deltavlm.geo.styles import STYLES
from deltavlm.model.config import DeltaVLMConfig, RuntimeOptions
from deltavlm.model.deltavlm import build
from deltavlm.pipeline.consistency import RULES
from deltavlm.pipeline.run_result import RunResult
from deltavlm.pipeline.schema import CHANGES, EVIDENCE_COLUMNS, LOCATIONS, PAIRS, chips_layer
from deltavlm.pipeline.totals import Totals
from deltavlm.summaries.totals import AREAS
from deltavlm.tasks.questions import load_questions
from deltavlm.upstream import names
from tests.cli.conftest import Run
from tests.conftest import Scene
from tests.imports import ARROWS, LEAVES
from tests.scripted_model import ScriptedModel

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("sample_data/*.md"),
    ]
)
USER_PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
OTHER_PROGRAMS = set(
    """
    --index-url --strict --nonblock --preserve-status --nproc-per-node --threads --real --scenes --driver
    --head --port --num-cpus --address --block
    --nodes --ntasks-per-node --gpus-per-node --cpus-per-task --time --nodelist --exclude --overlap --signal
    --array --dist --torch-backend
    --from --recipe --repository --rm --set --target --output-format
    """.split()  # noqa: SIM905
)  # flags of pip, uv, pytest, mypy, flock, timeout, torchrun, benchmarks, ray, SLURM, packaging


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [to for to in targets if "://" not in to and not (page.parent / to).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_named_in_the_documentation_exist(page: Path) -> None:
    """Paths in code spans, relative to the root, `tests`, `deltavlm` or the page."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w.]+/)+\w+\.(?:py|yaml|md|json))`", text)
    roots = (ROOT, ROOT / "tests", ROOT / "deltavlm", page.parent)
    assert not [name for name in named if not any((root / name).exists() for root in roots)]


def table_under(heading: str, page: str = "formats.md") -> list[str]:
    """The first column of the table that follows a heading of a page of docs."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.split(rf"\n##+ {re.escape(heading)}\n", text, maxsplit=1)[1]
    section = re.split(r"\n##+ ", section, maxsplit=1)[0]
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)


def test_every_column_of_the_chips_is_described() -> None:
    layer = chips_layer(load_questions(shipped_config("questions.yaml")))
    assert table_under("Layer `chips`") == [field.name for field in layer.fields]


def test_every_column_of_evidence_is_described() -> None:
    assert table_under("Columns of evidence") == [field.name for field in EVIDENCE_COLUMNS]


def test_every_column_of_the_locations_is_described() -> None:
    assert table_under("Layer `locations`") == [field.name for field in LOCATIONS.fields]


def test_every_column_of_the_pairs_is_described() -> None:
    assert table_under("Layer `pairs`") == [field.name for field in PAIRS.fields]


def test_every_column_of_the_changes_is_described() -> None:
    assert table_under("Layer `changes`") == [field.name for field in CHANGES.fields]


def test_every_column_of_a_summary_is_described() -> None:
    assert table_under("Columns", "summaries.md") == [field.name for field in AREAS.fields]


def test_every_consistency_rule_is_described() -> None:
    assert table_under("Consistency") == [rule.name for rule in RULES]


def test_every_style_is_described() -> None:
    assert sorted(table_under("What you see", "qgis.md")) == sorted(STYLES)


def test_every_metric_is_described() -> None:
    text = (ROOT / "docs" / "cron.md").read_text(encoding="utf-8").split("\n## Metrics\n", 1)[1]
    rows = re.findall(r"^\| (`deltavlm_[^|]+`) \| (\w+) \| ([^|]*)\|", text, flags=re.MULTILINE)
    run_metrics = RunMetrics()
    totals = Totals("chips", analyzed=1.0, new_buildings=1.0, new_roads=1.0, masked=1.0)
    run_metrics.watch(RunResult(is_single=True, totals=totals))
    run_metrics.set_model(ScriptedModel())
    run_metrics.exit_code = 0
    metrics = [
        (metric.name, metric.kind, list(next(iter(metric.samples))[0])) for metric in run_metrics.metrics()
    ]
    described = [
        (name, kind, re.findall(r"\w+", labels))
        for names, kind, labels in rows
        for name in re.findall(r"\w+", names)
    ]
    assert described == metrics


def test_the_exit_codes_are_those_of_the_program() -> None:
    def codes_of(kind: type[DeltaVLMError]) -> set[int]:
        return {kind.exit_code}.union(*(codes_of(sub) for sub in kind.__subclasses__()))

    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    table = text.split("\n## Exit codes\n", 1)[1].split("\n## ", 1)[0]
    documented = [int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)]
    signals = {128 + getattr(signal, name) for name in SIGNALS if hasattr(signal, name)}
    assert documented == sorted({0, CLOSED_PIPE} | codes_of(DeltaVLMError) | signals)


@cache
def all_commands() -> dict[str, typer.core.TyperCommand]:
    """The commands of the program and of its groups, by their words, such as `weights fetch`."""
    top = dict(getattr(typer.main.get_command(app), "commands", {}))
    nested = {
        f"{name} {word}": command
        for name, group in top.items()
        for word, command in getattr(group, "commands", {}).items()
    }
    return top | nested


def test_the_keys_of_the_json_summary_are_described(
    loads: list[tuple[str, RuntimeOptions]], scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = text.split("\n## Summary\n", 1)[1].split("\n## ", 1)[0]
    cells = re.findall(r"^\| (`[^|]+) \|", section, flags=re.MULTILINE)
    described = {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}
    Path("list.csv").write_text(f"before,after\n{scene.before},{scene.after}\n")
    keys: set[str] = set()
    for words in ((*scene.args, "-o", "one.gpkg", "--polygons"), ("--pairs", "list.csv", "-o", "many.gpkg")):
        result = Run(loads)("analyze", *words, "--chip-size", 32, "--json")
        assert result.exit_code == 0, result.stderr
        keys |= json.loads(result.stdout).keys()
    assert described - {"extras"} == keys


@pytest.mark.parametrize("page", USER_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_flags_in_the_documentation_exist(page: Path) -> None:
    flags = {"--help", "--version"} | OTHER_PROGRAMS
    for command in all_commands().values():
        flags |= {flag for param in command.params for flag in [*param.opts, *param.secondary_opts]}
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*)", text)) - flags


def test_the_readme_lists_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("\n## Commands\n", 1)[1].split("\n## ", 1)[0]
    listed = re.findall(r"^\| \[`(\w+)`\]", table, flags=re.MULTILINE)
    visible = [name for name, command in all_commands().items() if " " not in name and not command.hidden]
    assert sorted(listed) == sorted(visible)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def test_the_model_card_is_valid() -> None:
    """Hugging Face's parser reads it, and its figures equal those of the page."""
    card = ModelCard.load(ROOT / "docs" / "model-card.md")
    assert card.data.license == "apache-2.0"
    assert card.data.model_name == "nano"
    figures = [result.metric_value for result in card.data.eval_results]
    scores = json.loads((ROOT / "docs" / "nano" / "scores.json").read_text(encoding="utf-8"))
    real = scores["real"]["all, by mask"]
    measured = [scores["made"]["yes_no_balanced"], scores["made"]["yes_no_auc"]]
    measured += [real["balanced accuracy"][0], real["AUC"][0]]
    assert figures == [round(figure, 3) for figure in measured]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (__version__, "Apache-2.0")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["doi"] in (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")


def test_the_tensors_of_the_model_page_are_the_models() -> None:
    text = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+) \| ([\d, ]+) \| (?:Vicuna's )?`([\w.]+)` \|$", text, re.M)
    with torch.device("meta"):
        model = build(load(shipped_config("deltavlm-7b.yaml"), DeltaVLMConfig))
    tensors: dict[tuple[str, str], int] = {}
    for name, tensor in model.state_dict().items():
        key = (re.sub(r"\.\d+\.", ".N.", name), ", ".join(map(str, tensor.shape)))
        tensors[key] = tensors.get(key, 0) + 1
    assert {(ours, shape): int(count) for ours, count, shape, _ in rows} == tensors
    for ours, _, _, published in rows:
        if not ours.startswith("language."):
            assert names.from_published(published) == ours
    assert f"{sum(tensor.numel() for tensor in model.state_dict().values()):,} numbers" in text


def architecture_rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]


def test_the_packages_of_the_architecture_are_those_of_the_import_rules() -> None:
    documented = {
        package: set(re.findall(r"`(\w+)`", cells[2]))
        for cells in architecture_rows("Dependencies")
        for package in re.findall(r"`(\w+)`", cells[0])
    }
    assert documented.keys() == ARROWS.keys() - {"deltavlm"}
    for package in documented.keys() - LEAVES - {"deltacli"}:
        assert documented[package] == ARROWS[package] - LEAVES - {"deltavlm"}, package


def test_the_types_of_the_architecture_are_in_their_modules() -> None:
    for cells in architecture_rows("Types"):
        modules = [ROOT / "deltavlm" / path for path in re.findall(r"`([^`]+)`", cells[1])]
        source = "\n".join(module.read_text(encoding="utf-8") for module in modules)
        for name in re.findall(r"`(\w+)`", cells[0]):
            assert re.search(rf"^class {name}\b", source, flags=re.MULTILINE), name


def test_every_module_has_a_short_summary() -> None:
    """The first sentence of its docstring is a line of the file tree."""
    summary = runpy.run_path(str(ROOT / "docs" / "site" / "tree.py"))["summary"]
    modules = [path for package in ("deltacli", "deltavlm") for path in (ROOT / package).rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(summary(path)) for path in modules}
    assert not {name: length for name, length in lengths.items() if not 0 < length <= 100}


def test_the_file_tree_of_the_architecture_is_up_to_date() -> None:
    """The tree is generated from the modules' docstrings; `python docs/site/tree.py` writes it anew."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    generated = runpy.run_path(str(ROOT / "docs" / "site" / "tree.py"))["replace_tree"](page)
    assert page == generated, "docs/architecture.md is out of date: run `python docs/site/tree.py`"
