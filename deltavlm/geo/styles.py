"""QGIS styles of our layers, for `layer_styles` of a GeoPackage or a `.qml` next to an output.

Chips are graduated by the score of "changed", pale enough to see the image; the higher the score, the darker
and thicker the outline, so that nobody needs to tell red from green. Chips without data are grey, failed
chips are hatched. Classes have the colors of Okabe and Ito (2008), which differ for any kind of color
vision. Captions are labels of changed chips that are wide enough on the screen. Areas of a summary are
graduated by the share of them that has changed.
"""

from __future__ import annotations

from dataclasses import replace

from deltavlm.geo.features import Layer
from deltavlm.geo.qml import Color, Entry, Label, Style, qml

__all__ = ["CLASSES", "layer_style"]

# A graduated renderer takes numbers only: chips without a score get one below 0, by the reason.
SCORE = (
    "CASE WHEN \"status\" IN ('unreadable', 'error') THEN -3 WHEN \"status\" = 'nodata' THEN -2 "
    'ELSE coalesce("changed_score", -1) END'
)
# ColorBrewer's YlOrRd, transparent enough to see the image below where up to four chips overlap
STEPS: tuple[tuple[str, Color, float], ...] = (
    ("unchanged", (255, 255, 178, 0), 0.15),
    ("probably unchanged", (254, 204, 92, 10), 0.2),
    ("unsure", (253, 141, 60, 20), 0.3),
    ("probably changed", (240, 59, 32, 28), 0.45),
    ("changed", (189, 0, 38, 35), 0.6),
)
SHARES = ((0, 0.05), (0.05, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1))
GREY: Color = (110, 110, 110, 200)
NO_SCORES = (
    Entry("answered without a score", (0, 0, 0, 0), GREY, {"lower": "-1.5", "upper": "-0.5"}),
    Entry("not analyzed: no data", (128, 128, 128, 110), GREY, {"lower": "-2.5", "upper": "-1.5"}),
    Entry(
        "not analyzed: failed",
        (0, 0, 0, 200),
        (0, 0, 0, 220),
        {"lower": "-3.5", "upper": "-2.5"},
        width_mm=0.4,
        brush="b_diagonal",
    ),
)
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("building", (240, 228, 66)),
    ("road", (86, 180, 233)),
    ("other", (204, 121, 167)),
)
ORANGE: Color = (255, 127, 0, 255)
TECHNICAL = ("model", "before", "after", "inputs", "notes")  # the same in every row, or long


def _scores() -> list[Entry]:
    """Legend entry of each fifth of the scores, the highest first."""
    entries = []
    for step, (word, fill, width_mm) in enumerate(STEPS):
        low, high = f"{step / len(STEPS):g}", f"{(step + 1) / len(STEPS):g}"
        outline = (*fill[:3], 120 + 30 * step)
        match = {"lower": low, "upper": high}
        entries.append(Entry(f"{word} ({low} to {high})", fill, outline, match, width_mm))
    return entries[::-1]


def _shares() -> list[Entry]:
    """Legend entry of each class of the share of an area that has changed, the highest first."""
    steps = zip(SHARES, STEPS, strict=True)
    return [
        Entry(
            f"{100 * low:g} to {100 * high:g} % changed",
            (*fill[:3], 90),
            (*GREY[:3], 255),
            {"lower": f"{low:g}", "upper": f"{high:g}"},
        )
        for (low, high), (_, fill, _) in steps
    ][::-1]


def _classes(opacity: int) -> list[Entry]:
    return [Entry(name, (*color, opacity), (*color, 255), {"value": name}, 0.4) for name, color in CLASSES]


def _html_text(column: str) -> str:
    """Expression of a text column for HTML, where a < must not start a tag."""
    return f"[% replace(coalesce(\"{column}\", ''), '<', '&lt;') %]"


STYLES = {
    "chips": Style(
        "graduated",
        [*_scores(), *NO_SCORES],
        title='"chip_id"',
        tip='<b>[% "chip_id" %]</b> [% coalesce(round("changed_score", 2), "status") %]<br>'
        + _html_text("caption"),
        value=SCORE,
        label=Label('if("changed", wordwrap("caption", 30), NULL)', min_mm=35),
        on_top="changed_score",
        decimals=dict.fromkeys(
            (
                *("changed_score", "caption_score", "valid_fraction", "ground_share", "aoi_share"),
                "cloud_share",
            ),
            2,
        ),
    ),
    "locations": Style(
        "categorised",
        _classes(opacity=30)[:2],  # no cell is named for anything else
        title='"class" || \' \' || "chip_id" || \' \' || "cell"',
        tip='<b>[% "class" %]</b> [% "cell" %]<br>' + _html_text("caption"),
        value="class",
    ),
    "changes": Style(
        "categorised",
        _classes(opacity=70),
        title="replace(\"kind\", '_', ' ') || ', ' || format_number(\"area_m2\", 0) || ' m²'",
        tip="<b>[% replace(\"kind\", '_', ' ') %]</b> "
        '[% format_number("area_m2", 0) %] m², score [% round("mean_score", 2) %]<br>'
        + _html_text("caption"),
        value="class",
        label=Label(
            "replace(\"kind\", '_', ' ') || '\\n' || format_number(\"area_m2\", 0) || ' m²'",
            min_mm=8,
            size_pt=7,
        ),
        decimals={"area_m2": 1, "perimeter_m": 1, "mean_score": 2, "lon": 6, "lat": 6},
    ),
    "areas": Style(
        "graduated",
        [*_shares(), Entry("not analyzed", (128, 128, 128, 110), GREY, {"lower": "-1.5", "upper": "-0.5"})],
        title='"name"',
        tip=f'<b>{_html_text("name")}</b> [% "changed" %] of [% "looked_at" %] chips changed<br>'
        + _html_text("top_caption"),
        value='coalesce("changed_share", -1)',
        label=Label("\"name\" || '\\n' || round(100 * \"changed_share\") || ' %'", min_mm=20),
        decimals={
            "changed_share": 3,
            **dict.fromkeys(("mean_score", "unsure_share", "cloud_share", "overlap", "top_score"), 2),
        },
    ),
    "pairs": Style(
        "categorised",
        [
            Entry("answered", (0, 0, 0, 0), ORANGE, {"value": "answered"}, 0.4),
            Entry("partly", (0, 0, 0, 120), ORANGE, {"value": "partly"}, 0.4, "b_diagonal", "dash"),
        ],
        title='"pair_id"',
        tip=f'<b>{_html_text("pair_id")}</b> [% "changed" %] of [% "chips" %] chips changed<br>'
        + _html_text("reason"),
        value="status",
        label=Label('"pair_id"', min_mm=20),
    ),
    "grid": Style(
        "single",
        [Entry("", (0, 0, 0, 0), ORANGE)],
        title='"chip_id"',
        tip='[% "chip_id" %]',
        label=Label('"chip_id"', min_mm=25, size_pt=7),
    ),
}


def layer_style(layer: Layer) -> str | None:
    """QML of a layer; None for a layer without a style."""
    style = STYLES.get(layer.name)
    if style is None:
        return None
    answers = (column.name for column in layer.fields if column.name.startswith(("answer_", "status_")))
    return qml(replace(style, hidden=(*TECHNICAL, *answers)), layer.fields)
