"""A page of text, tables and a picture, as Markdown or as HTML that prints on A4 and loads nothing.

What is put on it is text: marks of Markdown and HTML in captions and names of places are shown, not obeyed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Block", "Heading", "Items", "Picture", "Table", "Text", "to_html", "to_markdown"]


@dataclass(frozen=True, slots=True)
class Heading:
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Items:
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """The first column is text, the others are numbers, but for those named in `words`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """SVG, which Markdown leaves out, and what it shows."""

    svg: str
    caption: str


Block = Heading | Text | Items | Table | Picture

STYLE = """
@page { size: A4; margin: 12mm 14mm; }
body { font: 8.5pt/1.25 system-ui, sans-serif; color: #1a1a1a; max-width: 182mm; }
body { margin: 8mm auto; padding: 0 4mm; }
h1 { font-size: 15pt; margin: 0 0 1mm; } h2 { font-size: 10.5pt; margin: 3mm 0 1mm; }
p, ul { margin: 0 0 1.5mm; } ul { padding-left: 5mm; }
table { border-collapse: collapse; width: 100%; font-size: 7.5pt; margin-bottom: 1.5mm; }
th, td { padding: 0.5mm 1.2mm; border-bottom: 0.2mm solid #ccc; text-align: right; vertical-align: top; }
th { border-bottom-color: #555; font-weight: 600; } .w { text-align: left; overflow-wrap: break-word; }
tr, figure { break-inside: avoid; } h2 { break-after: avoid; }
figure { margin: 0 0 1.5mm; } figcaption { font-size: 7.5pt; color: #444; }
svg { display: block; width: 100%; height: 45mm; }
@media print { body { margin: 0; padding: 0; max-width: none; } }
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The page as one HTML file; its policy lets a browser load nothing, run nothing."""
    body = "\n".join(_html(block) for block in blocks)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{_escaped(title)}</h1>\n{body}\n</body></html>\n"
    )


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page as Markdown with tables of pipes, as GitHub reads it."""
    return "\n\n".join([f"# {_marked(title)}", *filter(None, map(_markdown, blocks))]) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_escaped(text)}</h2>"
        case Text(text):
            return f"<p>{_escaped(text)}</p>"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{_escaped(text)}</li>" for text in texts) + "</ul>"
        case Picture(svg, caption):
            return f"<figure>{svg}<figcaption>{_escaped(caption)}</figcaption></figure>"
        case Table(columns, rows, words):
            kinds = [
                ' class="w"' if number == 0 or name in words else "" for number, name in enumerate(columns)
            ]
            lines = [_cells("th", columns, kinds), *(_cells("td", row, kinds) for row in rows)]
            return f"<table>{''.join(lines)}</table>"


def _cells(tag: str, texts: Sequence[str], kinds: Sequence[str]) -> str:
    cells = (f"<{tag}{kind}>{_escaped(text)}</{tag}>" for text, kind in zip(texts, kinds, strict=True))
    return f"<tr>{''.join(cells)}</tr>\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_marked(text)}"
        case Text(text):
            return _marked(text)
        case Items(texts):
            return "\n".join(f"- {_marked(text)}" for text in texts)
        case Picture():
            return ""
        case Table(columns, rows, words):
            rules = ["---" if number == 0 or name in words else "---:" for number, name in enumerate(columns)]
            lines = [columns, rules, *rows]
            return "\n".join(
                f"| {' | '.join(cell if line is rules else _marked(cell) for cell in line)} |"
                for line in lines
            )


def _escaped(text: str) -> str:
    return html.escape(" ".join(text.split()))


def _marked(text: str) -> str:
    """Text in one line, with a backslash before whatever Markdown or HTML would obey."""
    line = re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([-+])(?=\s)", r"\\\1", line)
