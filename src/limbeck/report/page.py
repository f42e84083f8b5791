"""The report as one HTML page that needs nothing else: figures and style are inside, no script, no request leaves it.

Every piece of text passes through `escape` exactly once, here; tables and sentences arrive as plain strings.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from limbeck import __version__
from limbeck.paths import write_atomically
from limbeck.report.arms import Arm, find_control
from limbeck.report.figures import Drawn, draw_all
from limbeck.report.limits import limits
from limbeck.report.tables import (
    Table,
    cost_table,
    difference_table,
    environment_table,
    equal_table,
    result_table,
    setup_table,
    store_table,
)
from limbeck.report.verdict import Verdict, decide

__all__ = ["Arm", "write_report"]


def write_report(
    runs: Sequence[Arm],
    *,
    control: str,
    stores: Sequence[Mapping[str, Any]],
    title: str,
    folder: Path,
    teacher: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder/report.html` and `folder/figures/*.png`; the path of the page.

    `control` names the arm without a teacher. `stores` holds what `limbeck cache info` says of each signal store. `teacher` may
    hold `name`, `bits_per_byte` on the held-out documents and `flops_per_token`. Unfinished arms are shown as such; a
    `LimbeckError` says when there is no control. Files are replaced one by one, each whole; the page comes last.
    """
    control_arm = find_control(runs, control)
    figures = draw_all(runs, control=control_arm, teacher=teacher)
    _write_figures(figures, folder / "figures")
    page = render_page(runs, control=control_arm, stores=stores, title=title, teacher=teacher, figures=figures)
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _write_figures(figures: Sequence[Drawn], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        temporary = folder / f"{figure.name}.png.tmp"
        temporary.write_bytes(figure.png)
        os.replace(temporary, folder / f"{figure.name}.png")


def render_page(
    arms: Sequence[Arm],
    *,
    control: Arm,
    stores: Sequence[Mapping[str, Any]],
    title: str,
    teacher: Mapping[str, Any] | None,
    figures: Sequence[Drawn],
) -> str:
    """The whole page as HTML."""
    wide = [figure for figure in figures if figure.name == "differences"]
    curves = [figure for figure in figures if figure.name != "differences"]
    body = [
        f"<h1>{escape(title)}</h1>",
        _paragraph(f"The same student with and without a teacher. Limbeck {__version__}.", css="soft"),
        _verdict(decide(arms, control=control, stores=stores)),
        *(_figure(figure, css="wide") for figure in wide),
        _table(result_table(arms, control=control, teacher=teacher)),
        _paragraph(_RESULT_NOTE, css="soft"),
        "<h2>Curves</h2>",
        f'<div class="figures">{"".join(_figure(figure) for figure in curves)}</div>' if curves else _paragraph(_NO_CURVES),
        "<h2>Equal tokens, seconds, FLOPs</h2>",
        _table(equal_table(arms, control=control), css="equal"),
        _paragraph(_EQUAL_NOTE, css="soft"),
        "<h2>Costs</h2>",
        _table(cost_table(arms, control=control)),
        _paragraph(_COST_NOTE, css="soft"),
        "<h2>What this run may and may not tell you</h2>",
        f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in limits(arms, control=control, teacher=teacher))}</ul>",
        "<h2>Signal stores</h2>",
        _table(store_table(stores, arms), css="facts") if stores else _paragraph("No signal store was used."),
        "<h2>Setup</h2>",
        *_setup(arms, control),
    ]
    return _PAGE.format(title=escape(title), style=_style(), body="\n".join(body))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_RESULT_NOTE = (
    "Fewer bits per byte are better. Intervals are 95%, from a bootstrap over held-out documents; those of differences are "
    "paired by document, which is why two overlapping intervals can belong to a difference that is clear."
)
_EQUAL_NOTE = (
    "Bits per byte of the arm minus the control’s at the cost in brackets; negative is better. Where one run ends before "
    "the other, the longer one is read at that cost on the straight line between two of its measurements, before its learning "
    "rate has decayed; both count against it. "
    "“No overlap”: the longer run was first measured beyond the shorter one’s end. “No difference told”: not more than the "
    "half-width of the final interval."
)
_COST_NOTE = (
    "Step time is seconds per optimizer step relative to the control’s. The teacher’s FLOPs are those for the rows that an arm "
    "used, each row of a store once. Bytes are those read from the signal store."
)
_NO_CURVES = "Nothing has been measured yet."


def _style() -> str:
    return (resources.files("limbeck.report") / "page.css").read_text(encoding="utf-8")


def _setup(arms: Sequence[Arm], control: Arm) -> list[str]:
    trained = [arm for arm in arms if arm.run is not None]
    parts = [_table(setup_table(control), css="facts")] if control.run is not None else []
    parts.append(_table(difference_table(arms, control=control)))
    parts.append(_table(environment_table(arms), css="facts"))
    return parts + [_recipe(arm) for arm in trained]


def _recipe(arm: Arm) -> str:
    assert arm.run is not None, "only runs have recipes"
    text = yaml.safe_dump(arm.run.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"<details><summary>Recipe of “{escape(arm.name)}”</summary><pre>{escape(text)}</pre></details>"


def _verdict(verdict: Verdict) -> str:
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in verdict.paragraphs)
    return f'<div class="verdict {verdict.outcome}"><strong>{escape(verdict.headline)}</strong>{paragraphs}</div>'


def _paragraph(text: str, *, css: str = "") -> str:
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def _figure(figure: Drawn, *, css: str = "curve") -> str:
    data, caption = base64.b64encode(figure.png).decode("ascii"), escape(figure.caption)
    image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
    return f'<figure class="{css}">{image}<figcaption>{caption}</figcaption></figure>'


def _table(table: Table, *, css: str = "numbers") -> str:
    if not table.rows:
        return ""
    head = "".join(_cell("th", text, column, table) for column, text in enumerate(table.headers))
    rows = [
        f'<tr class="{table.marks.get(number, "arm")}">'
        + "".join(_cell("td", text, column, table) for column, text in enumerate(row))
        + "</tr>"
        for number, row in enumerate(table.rows)
    ]
    body = "\n".join(rows)
    return f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(tag: str, text: str, column: int, table: Table) -> str:
    kind = "words" if column in table.words else "number"
    return f'<{tag} class="{kind}">{escape(text)}</{tag}>'
