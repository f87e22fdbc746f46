"""What mkdocs does beside building: pages that lie outside docs/, and those of the commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from commands import command_pages  # noqa: E402

ROOT = HERE.parent.parent
OUTSIDE = {  # where the page lies in the checkout, and on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results.md": "results.md",
    "sample_data/README.md": "sample.md",
}
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for path, name in OUTSIDE.items():
        text = _moved((ROOT / path).read_text(encoding="utf-8"), Path(path).parent)
        files.append(File.generated(config, name, content=text))
    for words, text in command_pages().items():
        files.append(File.generated(config, f"commands/{words.replace(' ', '-')}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    source = page.file.src_uri
    if source in OUTSIDE.values() or source.startswith("commands/"):
        return markdown
    return _moved(markdown, Path("docs", source).parent, "../" * source.count("/"))


def _moved(text: str, folder: Path, up: str = "") -> str:
    """Links of a page in `folder` of the checkout as they are on the site, to other files dead."""

    def moved(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        there = (ROOT / folder / target).resolve()
        if not there.is_relative_to(ROOT):
            return link[0]
        known = there.relative_to(ROOT).as_posix()
        if known in OUTSIDE:
            return f"]({up}{OUTSIDE[known]}{anchor})"
        if known.startswith("docs/"):
            return f"]({up}{known.removeprefix('docs/')}{anchor})"
        return f'](# "{known}, in the source")'

    return LINK.sub(moved, text)
