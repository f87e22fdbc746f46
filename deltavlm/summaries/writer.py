"""Writer of a summary: CSV, a document in Markdown or HTML, or a map in any vector format."""

from __future__ import annotations

from pathlib import Path

from deltavlm.errors import ConfigError
from deltavlm.geo.geobox import LONLAT
from deltavlm.geo.output_files import SUFFIXES, write_output
from deltavlm.geo.sinks import open_sink
from deltavlm.summaries.document import document
from deltavlm.summaries.render import to_html, to_markdown
from deltavlm.summaries.summary import Summary
from deltavlm.summaries.table import to_csv
from deltavlm.summaries.totals import AREAS, as_feature

__all__ = ["SUMMARY_SUFFIXES", "write_summary"]

SUMMARY_SUFFIXES = (".csv", ".md", ".html", *SUFFIXES)


def write_summary(path: Path, summary: Summary, *, overwrite: bool = False) -> None:
    """Write a summary in the format of the suffix; the path `-` writes a map as NDJSON to stdout.

    Raises:
        ConfigError: a map of a single area without an outline.
        OutputError and WriteError: as `write_output` and `open_sink`.
    """
    match path.suffix.lower():
        case ".csv":
            write_output(path, to_csv(summary.by_area).encode(), overwrite)
        case ".md":
            write_output(path, to_markdown(*document(summary)).encode(), overwrite)
        case ".html":
            write_output(path, to_html(*document(summary)).encode(), overwrite)
        case _:
            _write_map(path, summary, overwrite)


def _write_map(path: Path, summary: Summary, overwrite: bool) -> None:
    if all(area.shape is None for area in summary.by_area):
        raise ConfigError(f"{path}: there are no areas to draw; add `by`, or write .csv, .md or .html")
    provenance = {
        "tool": "deltavlm summarize",
        "outputs": [str(output) for output in summary.results.paths],
        "by": summary.areas.kind,
        "caveats": list(summary.caveats),
        "runs": list(summary.results.runs),
    }
    with open_sink(path, (AREAS,), LONLAT, provenance, overwrite=overwrite) as sink:
        sink.write(AREAS.name, map(as_feature, summary.by_area))
