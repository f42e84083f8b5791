"""A CSV file as points: which column, or which arithmetic on columns, is N, D, loss and teacher_loss.

In an expression or condition the names N, D, loss and teacher_loss mean the points' own values, any other name a column. Rows
are counted as a spreadsheet does: the header is row 1.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError, SpecError
from limbeck.plan.fit.points import NAMES, Points, condition
from limbeck.plan.formula import Formula, parse_formula
from limbeck.plan.laws import Array
from limbeck.spec.base import nearest

_NEXT = re.compile(r",\s*(?=\w+\s*=(?!=))")


@dataclass(frozen=True)
class Table:
    """A CSV file's cells by column, with the file's row number of each."""

    path: str
    columns: Mapping[str, tuple[str, ...]]
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, chosen: NDArray[np.bool_]) -> "Table":
        """The rows for which `chosen` is true."""
        kept = np.flatnonzero(chosen)
        columns = {name: tuple(cells[row] for row in kept) for name, cells in self.columns.items()}
        return Table(self.path, columns, tuple(self.rows[row] for row in kept))

    def numbers(self, column: str) -> Array:
        """A column's numbers; `DataError` naming the first cell that holds none."""
        return np.array([self._number(row, column, cell) for row, cell in zip(self.rows, self.columns[column], strict=True)])

    def anything(self, column: str) -> Array | NDArray[np.str_]:
        """A column as numbers where all of it that isn't empty is, as text otherwise."""
        cells = self.columns[column]
        try:
            return np.array([float(cell) if cell.strip() else np.nan for cell in cells])
        except ValueError:
            return np.array(cells)

    def _number(self, row: int, column: str, cell: str) -> float:
        try:
            return float(cell)
        except ValueError:
            raise DataError(f"{self.path}, row {row}: {column} is {cell!r}, which is not a number") from None


def read_table(path: Path) -> Table:
    """A CSV file with a header (UTF-8, commas); `DataError` where it isn't one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no CSV file in UTF-8 ({error})") from None
    if not header or not lines:
        raise DataError(f"{path} is empty: it needs a header and rows below it")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{path} has two columns called {twice[0]!r}: rename one")
    for row, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{path}, row {row} has {len(cells)} cells, the header {len(header)}")
    columns = {name: tuple(cells[place] for _, cells in lines) for place, name in enumerate(header)}
    return Table(str(path), columns, tuple(row for row, _ in lines))


def parse_columns(text: str) -> dict[str, str]:
    """`N=COL,D=COL*1e9,…` as a mapping; `SpecError` for names that points don't have."""
    chosen: dict[str, str] = {}
    for part in _NEXT.split(text.strip()):
        name, equals, column = (side.strip() for side in part.partition("="))
        if not equals or not column:
            raise SpecError(f"--columns {part!r} says no column: write N=COL,D=COL,loss=COL")
        if name not in NAMES:
            raise SpecError(f"--columns {name} is not what a point has{nearest(name, list(NAMES))}")
        if name in chosen:
            raise SpecError(f"--columns names {name} twice")
        chosen[name] = column
    return chosen


@dataclass(frozen=True)
class Reading:
    """A table read with the columns that a user chose; a name that wasn't chosen is a column of that name."""

    table: Table
    chosen: Mapping[str, str]

    def where(self, text: str) -> "Reading":
        """The rows that a condition holds for; `DataError` where none is left."""
        kept = condition(text, self.values(), count=len(self.table), option="--where")
        if not kept.any():
            raise DataError(f"--where {text!r} leaves none of the {len(self.table)} rows of {self.table.path}")
        return Reading(self.table.where(kept), self.chosen)

    def points(self, *, with_teacher: bool) -> Points:
        """N, D, loss and, where asked for, teacher_loss of every row."""
        params, tokens, loss = (self.array(name) for name in NAMES[:3])
        teacher_loss = self.array(NAMES[3]) if with_teacher else None
        return Points(params, tokens, loss, teacher_loss, tuple(f"{self.table.path}, row {row}" for row in self.table.rows))

    def values(self) -> Mapping[str, Any]:
        """What conditions may name, computed when they do."""
        return _Values(self, inside=None)

    def has(self, name: str) -> bool:
        """Whether the points' `name` was chosen or is a column."""
        return name in self.chosen or name in self.table.columns

    def array(self, name: str, *, inside: frozenset[str] = frozenset()) -> Array:
        """The points' N, D, loss or teacher_loss. `inside` holds the names whose expressions need it."""
        column = self.chosen.get(name, name)
        if column in self.table.columns:
            return self.table.numbers(column)
        formula = self._formula(name, column)
        with np.errstate(all="ignore"):
            found = formula.evaluate(_Values(self, inside=inside | {name}))
        return np.broadcast_to(np.asarray(found, dtype=np.float64), (len(self.table),))

    def _formula(self, name: str, column: str) -> Formula:
        columns = sorted(filter(None, self.table.columns))
        try:
            formula = parse_formula(column)
        except SpecError as error:
            raise SpecError(
                f"--columns {name}={column}: {self.table.path} has no such column{nearest(column, columns)}; {error}"
            ) from None
        for needed in sorted(formula.names):
            known = needed in self.table.columns or (needed in NAMES and needed != name and needed in self.chosen)
            if not known:
                raise SpecError(
                    f"--columns {name}={column}: {self.table.path} has no column {needed!r}{nearest(needed, columns)}"
                )
        return formula


class _Values(Mapping[str, Any]):
    """Values by name for a formula. A condition (`inside` None) may name a column of text, an expression may not."""

    def __init__(self, reading: Reading, *, inside: frozenset[str] | None) -> None:
        self.reading, self.inside = reading, inside

    @cached_property
    def names(self) -> list[str]:
        return [*dict.fromkeys([*(name for name in NAMES if self.reading.has(name)), *self.reading.table.columns])]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Any:
        table = self.reading.table
        if name in NAMES and name in self.reading.chosen and name not in (self.inside or ()):
            return self.reading.array(name, inside=self.inside or frozenset())
        if name not in table.columns:
            raise SpecError(f"--columns: {name} is defined by itself; name a column of {table.path}")
        return table.anything(name) if self.inside is None else table.numbers(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
