"""Hooks of mkdocs: add the pages outside docs/ and those of the commands, and adapt their links."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

from commands import command_pages  # noqa: E402

ROOT = FOLDER.parent.parent
OUTSIDE_PAGES = {  # path in the repository -> path on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results.md": "results.md",
    "sample_data/README.md": "sample.md",
}
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, name in OUTSIDE_PAGES.items():
        text = _adapt_links((ROOT / path).read_text(encoding="utf-8"), Path(path).parent)
        files.append(File.generated(config, name, content=text))
    for words, text in command_pages().items():
        files.append(File.generated(config, f"commands/{words.replace(' ', '-')}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Adapt the links of the pages in docs/."""
    source = page.file.src_uri
    if source in OUTSIDE_PAGES.values() or source.startswith("commands/"):
        return markdown
    return _adapt_links(markdown, Path("docs", source).parent, "../" * source.count("/"))


def _adapt_links(text: str, folder: Path, prefix: str = "") -> str:
    """Point the links of a page in `folder` to pages of the site; links to other files are disabled."""

    def adapt(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        path = (ROOT / folder / target).resolve()
        if not path.is_relative_to(ROOT):
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        if name in OUTSIDE_PAGES:
            return f"]({prefix}{OUTSIDE_PAGES[name]}{anchor})"
        if name.startswith("docs/"):
            return f"]({prefix}{name.removeprefix('docs/')}{anchor})"
        return f'](# "{name}, in the source")'

    return LINK.sub(adapt, text)
