"""A CSV file as points: which column, or which arithmetic on columns, is N, D, loss and teacher_loss.

`N=Model Size,C=Training FLOP,D=C/(6*N)` defines N and D with the help of a name of one's own. In an expression or condition a
defined name means its definition, any other name a column. The column is meant inside a name's own definition (`N=N*1e9`), and
where a definition is nothing but a column's name (`N=D,D=N` swaps two columns), unless that is a name of one's own. Rows are
counted as a spreadsheet does: the header is row 1.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError, SpecError
from limbeck.plan.fit.points import NAMES, Points, condition, parse_condition
from limbeck.plan.formula import Formula, is_number, parse_formula
from limbeck.plan.laws import Array
from limbeck.spec.base import nearest

_PART = re.compile(r"""(?:`[^`]*`|(?<!\w)'[^']*'|(?<!\w)"[^"]*"|(?!,\s*(?:\w+\s*=(?!=)|,|$)).)*""", re.DOTALL)
"""Up to a comma that another definition follows, or nothing; commas in quotes and backticks belong to a name."""


@dataclass(frozen=True)
class Table:
    """A CSV file's cells by column, with the file's row number of each."""

    path: str
    columns: Mapping[str, tuple[str, ...]]
    rows: tuple[int, ...]
    text: frozenset[str]
    """The columns in which the file has cells that are neither numbers nor empty."""

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, chosen: NDArray[np.bool_]) -> "Table":
        """The rows for which `chosen` is true."""
        kept = np.flatnonzero(chosen)
        columns = {name: tuple(cells[row] for row in kept) for name, cells in self.columns.items()}
        return Table(self.path, columns, tuple(self.rows[row] for row in kept), self.text)

    def numbers(self, column: str) -> Array:
        """A column's numbers; `DataError` naming the first cell that holds none."""
        return np.array([self._number(row, column, cell) for row, cell in zip(self.rows, self.columns[column], strict=True)])

    def anything(self, column: str) -> Array | NDArray[np.str_]:
        """A column as text, or as numbers, NaN where it is empty."""
        cells = self.columns[column]
        return np.array(cells if column in self.text else [float(cell) if cell.strip() else np.nan for cell in cells])

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
    text = frozenset(name for name, cells in columns.items() if not all(is_number(cell) for cell in cells if cell.strip()))
    return Table(str(path), columns, tuple(row for row, _ in lines), text)


def parse_columns(text: str) -> dict[str, str]:
    """`N=COL,C=COL,D=C/(6*N),…` as a mapping; `SpecError` where a part of it defines nothing."""
    chosen: dict[str, str] = {}
    for part in _parts(text.strip()):
        if not part.strip():
            raise SpecError(f"--columns {text!r} has a comma too many: write N=COL,D=COL,loss=COL")
        name, equals, column = (side.strip() for side in part.partition("="))
        if not equals or not column:
            raise SpecError(f"--columns {part.strip()!r} says no column: write N=COL,D=COL,loss=COL")
        if not name.isidentifier():
            raise SpecError(
                f"--columns {name} is not a name: letters, digits and underscores make one{nearest(name, list(NAMES))}"
            )
        if name in chosen:
            raise SpecError(f"--columns names {name} twice")
        chosen[name] = column
    return chosen


def _parts(text: str) -> Iterator[str]:
    end = -1
    while end < len(text):
        found = _PART.match(text, end + 1)
        assert found is not None, "the pattern may be empty"
        yield found[0]
        end = found.end()


@dataclass(frozen=True)
class Reading:
    """A table read with the definitions that a user chose; a name without one is a column. `SpecError` where one can't be."""

    table: Table
    chosen: Mapping[str, str]

    def __post_init__(self) -> None:
        for name in self.chosen:
            self._refuse_cycle((name,))

    def refuse_unused(self, conditions: Mapping[str, Sequence[str]]) -> None:
        """`SpecError` for a name of one's own that neither another definition needs nor a condition; these come by option."""
        used = set().union(*map(self._needs, self.chosen))
        for option, texts in conditions.items():
            used |= set().union(*(parse_condition(text, self.names, option=option).names for text in texts))
        for name in self.chosen:
            if name not in NAMES and name not in used:
                raise SpecError(f"--columns {name} is not what a point has, and nothing uses it{nearest(name, list(NAMES))}")

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
        """Whether the points' `name` was chosen or is a column that isn't empty."""
        return name in self.chosen or any(cell.strip() for cell in self.table.columns.get(name, ()))

    def array(self, name: str) -> Array:
        """The numbers that a name means."""
        column = self.column(name)
        if column is not None:
            return self.table.numbers(column)
        with np.errstate(all="ignore"):
            found = self._formula(name).evaluate(_Values(self, inside=name))
        return np.broadcast_to(np.asarray(found, dtype=np.float64), (len(self.table),))

    def column(self, name: str) -> str | None:
        """The column that a name means, None where that is an expression."""
        text = self.chosen.get(name, name)
        own = text in self.chosen and text not in NAMES and text != name
        return text if text in self.table.columns and not own else None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All that mean something: the points' own first, then others with definitions, then columns."""
        own = [name for name in NAMES if name in self.chosen or name in self.table.columns]
        return tuple(dict.fromkeys([*own, *self.chosen, *filter(None, self.table.columns)]))

    def _needs(self, name: str) -> set[str]:
        """The definitions that one uses."""
        return set() if self.column(name) is not None else set(self._formula(name).names & self.chosen.keys()) - {name}

    def _refuse_cycle(self, path: tuple[str, ...]) -> None:
        for needed in sorted(self._needs(path[-1])):
            if needed in path:
                circle = " needs ".join((*path[path.index(needed) :], needed))
                raise SpecError(f"--columns goes round in a circle, {circle}: name a column of {self.table.path}")
            self._refuse_cycle((*path, needed))

    def _formula(self, name: str) -> Formula:
        text = self.chosen.get(name, name)
        place = f"--columns {name}={text}"
        valid = sorted(each for each in self.names if each != name or each in self.table.columns)
        try:
            formula = parse_formula(text, names=self.names)
        except SpecError as error:
            raise SpecError(f"{place}: {self.table.path} has no such column{nearest(text, valid)}; {error}") from None
        for needed in (*sorted(formula.names), *sorted(formula.strings)):
            if needed not in valid:
                raise SpecError(f"{place}: {self.table.path} has no column {needed!r}{nearest(needed, valid)}")
        if formula.is_condition:
            raise SpecError(f"{place} is true or false, and not a number: conditions are for --where and --hold-out")
        return formula


class _Values(Mapping[str, Any]):
    """Values by name for a formula. A condition (`inside` None) may name a column of text, a definition may not."""

    def __init__(self, reading: Reading, *, inside: str | None) -> None:
        self.reading, self.inside = reading, inside

    def __contains__(self, name: object) -> bool:
        return name in self.reading.names

    def __getitem__(self, name: str) -> Any:
        reading, table = self.reading, self.reading.table
        if name in reading.chosen and name != self.inside:
            column = reading.column(name) if self.inside is None and name not in NAMES else None
            return reading.array(name) if column is None else table.anything(column)
        return table.anything(name) if self.inside is None else table.numbers(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.reading.names)

    def __len__(self) -> int:
        return len(self.reading.names)
