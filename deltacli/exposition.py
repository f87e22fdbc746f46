"""Numbers as the text that Prometheus reads: version 0.0.4 of its exposition format.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["FIRST", "Metric", "Sample", "exposition"]

FIRST = "# HELP "  # how a text of ours begins

Sample = tuple[Mapping[str, str], float]  # labels and a value


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of samples; `name` and the names of labels are `[a-zA-Z_][a-zA-Z0-9_]*`."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Iterable[Sample]


def exposition(metrics: Iterable[Metric], labels: Mapping[str, str]) -> str:
    """The text of all metrics; each sample has these `labels` after its own. Ends with a newline.

    Families without samples are left out.
    """
    lines = []
    for metric in metrics:
        samples = [_line(metric.name, {**own, **labels}, value) for own, value in metric.samples]
        if samples:
            help_text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
            lines += [f"{FIRST}{metric.name} {help_text}", f"# TYPE {metric.name} {metric.kind}", *samples]
    return "".join(f"{line}\n" for line in lines)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{f'{{{told}}}' if told else ''} {value!r}"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")  # a path may hold bytes that are no UTF-8
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
