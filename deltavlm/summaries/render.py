"""Renderer of blocks of text, tables and figures as Markdown, or as HTML that prints on A4.

Text is escaped: Markdown and HTML markup in captions and names is shown, not interpreted. The HTML loads
nothing.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Block", "Figure", "Heading", "Items", "Table", "Text", "to_html", "to_markdown"]


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
    """A table whose first column is text and whose other columns are numbers, except `text_columns`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """SVG with a caption; left out in Markdown."""

    svg: str
    caption: str


Block = Heading | Text | Items | Table | Figure

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
    """HTML file whose Content-Security-Policy forbids loading and running anything."""
    body = "\n".join(_html(block) for block in blocks)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape_html(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{_escape_html(title)}</h1>\n{body}\n</body></html>\n"
    )


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """Markdown with pipe tables (GitHub-flavoured)."""
    return "\n\n".join([f"# {_escape_markdown(title)}", *filter(None, map(_markdown, blocks))]) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_escape_html(text)}</h2>"
        case Text(text):
            return f"<p>{_escape_html(text)}</p>"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{_escape_html(text)}</li>" for text in texts) + "</ul>"
        case Figure(svg, caption):
            return f"<figure>{svg}<figcaption>{_escape_html(caption)}</figcaption></figure>"
        case Table(columns, rows, text_columns):
            classes = [' class="w"' if is_text else "" for is_text in _text_flags(columns, text_columns)]
            lines = [_cells("th", columns, classes), *(_cells("td", row, classes) for row in rows)]
            return f"<table>{''.join(lines)}</table>"


def _cells(tag: str, texts: Sequence[str], classes: Sequence[str]) -> str:
    cells = (
        f"<{tag}{css_class}>{_escape_html(text)}</{tag}>"
        for text, css_class in zip(texts, classes, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_escape_markdown(text)}"
        case Text(text):
            return _escape_markdown(text)
        case Items(texts):
            return "\n".join(f"- {_escape_markdown(text)}" for text in texts)
        case Figure():
            return ""
        case Table(columns, rows, text_columns):
            alignments = ["---" if is_text else "---:" for is_text in _text_flags(columns, text_columns)]
            lines = [columns, alignments, *rows]
            return "\n".join(
                f"| {' | '.join(cell if line is alignments else _escape_markdown(cell) for cell in line)} |"
                for line in lines
            )


def _text_flags(columns: Sequence[str], text_columns: Sequence[str]) -> list[bool]:
    """Flags of the columns: True for the first column and for `text_columns`."""
    return [number == 0 or name in text_columns for number, name in enumerate(columns)]


def _escape_html(text: str) -> str:
    return html.escape(" ".join(text.split()))


def _escape_markdown(text: str) -> str:
    """Text in one line, with a backslash before every character that is markup in Markdown or HTML."""
    line = re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([-+])(?=\s)", r"\\\1", line)
