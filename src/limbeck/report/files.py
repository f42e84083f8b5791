"""The report as files: the page, its Markdown, every figure as PNG and SVG, every table as CSV and, with pyarrow, as Parquet.

Each file is replaced whole; the page comes last.
"""

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from limbeck.paths import write_atomically
from limbeck.report.blocks import Blocks, Drawn, Scalar, Table
from limbeck.report.html import render_html
from limbeck.report.markdown import render_markdown


def write_files(blocks: Blocks, *, title: str, folder: Path) -> Path:
    """Write everything into `folder`; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for block in blocks:
        if isinstance(block, Drawn):
            _write_figure(block, folder / "figures")
        elif isinstance(block, Table) and block.rows:
            _write_table(block, folder / "tables", name=_unused(block.name, names))
    write_atomically(folder / "report.md", render_markdown(blocks, title=title))
    write_atomically(folder / "report.html", render_html(blocks, title=title))
    return folder / "report.html"


def _write_figure(figure: Drawn, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{figure.name}.png", [figure.png])
    write_atomically(folder / f"{figure.name}.svg", [figure.svg])


def _unused(name: str, names: set[str]) -> str:
    """The name, with a number where another table has it, in the order of the page; file systems may not tell cases apart."""
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    found = next(each for each in numbered if each.lower() not in names)
    names.add(found.lower())
    return found


def _write_table(table: Table, folder: Path, *, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records = records_of(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(map(guarded, row) for row in (list(records[0]), *(record.values() for record in records)))
    write_atomically(folder / f"{name}.csv", text.getvalue())
    if find_spec("pyarrow") is not None:
        write_atomically(folder / f"{name}.parquet", [_parquet(records)])


_FORMULA = re.compile(r"[=+@\t\r]|-[^\W\d_]")


def guarded(value: Scalar) -> Scalar:
    """A text that a spreadsheet would run as a formula, behind an apostrophe; numbers, also as text, stay what they are.

    Source: OWASP, "CSV Injection".
    """
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def records_of(table: Table) -> list[dict[str, Scalar]]:
    """A table's records, or its cells where it has none; every record has every column."""
    if table.records:
        columns = list(dict.fromkeys(key for record in table.records for key in record))
        return [{column: record.get(column) for column in columns} for record in table.records]
    headers = [header or f"column {place}" for place, header in enumerate(table.headers)]
    unique = [f"{header} ({place})" if headers.count(header) > 1 else header for place, header in enumerate(headers)]
    return [dict(zip(unique, row, strict=True)) for row in table.rows]


def _parquet(records: Sequence[Mapping[str, Scalar]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: _column([record[name] for record in records]) for name in records[0]}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _column(values: Sequence[Scalar]) -> Sequence[Scalar]:
    """One type a column: numbers together, anything mixed as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return [None if value is None else float(value) for value in values]
    return values if len(kinds) <= 1 else [None if value is None else str(value) for value in values]
