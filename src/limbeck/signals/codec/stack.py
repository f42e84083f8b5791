"""Several shards' models as one, so that a batch of pieces from anywhere is read at once.

A model's tables take 1 to 2 MB and some milliseconds to make, and a loader that shuffles documents asks for those of other
shards with every batch. So tables stay where they once were put, in flat arrays one after another, and a batch that needs no
new model copies nothing. Arrays only grow: what a reader holds of them is not touched, and readers may be in several threads.
When they would take more than `MOST_BYTES`, models are put into new ones from the beginning.

Shapes: P symbols of all contexts of all tables ("places"), R contexts, S slots of all contexts; see `tables.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np

from limbeck.signals.codec.model import Model, read_model
from limbeck.signals.codec.tables import Tables
from limbeck.signals.codec.words import num_names
from limbeck.spec.signal import TokenSignal

MOST_BYTES = 1 << 30
"""Of all models that are kept of one signal: some 700 shards'."""
_DTYPES = {"slots": "u1", "at_R": "i8", "frequency_P": "u2", "before_P": "u2", "first_P": "i4", "bits_P": "u1"}
"""No wider than they need."""


@dataclass(frozen=True)
class Placed:
    """What is known of a model besides its tables, and the context at which each of its tables begins."""

    classes: int
    lane_rows: int
    rows: dict[str, int]


@dataclass(frozen=True)
class Stack:
    """Models side by side."""

    models: Mapping[bytes, Placed]
    tables: Tables
    level_P: np.ndarray  # uint8: of marks, see `Model.level_P`
    names: np.ndarray  # int64: ids by name, see `Words.bands_by_name`


class _Growing:
    """An array with room at its end."""

    def __init__(self, dtype: str) -> None:
        self._values = np.empty(1 << 12, dtype=dtype)
        self._used = 0

    def append(self, part: np.ndarray) -> None:
        """Room is doubled where there is too little; values that were handed out stay as they are."""
        end = self._used + len(part)
        if end > len(self._values):
            grown = np.empty(max(end, 2 * len(self._values)), dtype=self._values.dtype)
            grown[: self._used] = self.values
            self._values = grown
        self._values[self._used : end] = part
        self._used = end

    @property
    def values(self) -> np.ndarray:
        """All that was appended."""
        return self._values[: self._used]


class _Arrays:
    """Models put one after another."""

    def __init__(self, vocab_size: int) -> None:
        self.models: dict[bytes, Placed] = {}
        self._num_names = num_names(vocab_size)
        self._tables = {name: _Growing(dtype) for name, dtype in _DTYPES.items()}
        self._level_P, self._names = _Growing("u1"), _Growing("i8")
        self._names.append(np.arange(self._num_names))

    @property
    def num_bytes(self) -> int:
        """In use."""
        return sum(array.values.nbytes for array in (*self._tables.values(), self._level_P, self._names))

    def put(self, key: bytes, model: Model) -> None:
        """A model after the others; none of it where it cannot be made."""
        tables, level_P, names, rows = model.tables, model.level_P, model.names, model.rows
        first_P = tables.first_P.copy()
        bands = first_P[-model.mark_levels.size :]
        bands[bands >= self._num_names] += len(self._names.values) - self._num_names
        row = len(self._tables["at_R"].values)
        moved = {"at_R": tables.at_R + len(self._level_P.values), "first_P": first_P}
        for name, array in self._tables.items():
            array.append(moved.get(name, getattr(tables, name)))
        self._level_P.append(level_P)
        self._names.append(names)
        self.models[key] = Placed(model.classes, model.lane_rows, {name: row + at for name, at in rows.items()})

    def stack(self, keys: Sequence[bytes]) -> Stack:
        """Some of the models, in the arrays of all."""
        tables = Tables(**{name: array.values for name, array in self._tables.items()})
        return Stack({key: self.models[key] for key in keys}, tables, self._level_P.values, self._names.values)


class _Kept:
    """The models of one signal that were asked for."""

    def __init__(self, signal: TokenSignal, vocab_size: int) -> None:
        self._signal, self._vocab_size = signal, vocab_size
        self._arrays = _Arrays(vocab_size)
        self._lock = Lock()

    def stack(self, keys: Sequence[bytes]) -> Stack:
        """These models."""
        with self._lock:
            missing = [key for key in keys if key not in self._arrays.models]
            if missing and self._arrays.num_bytes > MOST_BYTES:
                self._arrays, missing = _Arrays(self._vocab_size), list(keys)
            for key in missing:
                self._arrays.put(key, read_model(key, self._signal, self._vocab_size))
            return self._arrays.stack(keys)


@lru_cache(maxsize=4)
def _kept(signal: TokenSignal, vocab_size: int) -> _Kept:
    return _Kept(signal, vocab_size)


def stack_models(keys: Sequence[bytes], *, signal: TokenSignal, vocab_size: int) -> Stack:
    """The models of some bytes as one. Raises `DamagedRowsError` where no model has these bytes."""
    return _kept(signal, vocab_size).stack(list(dict.fromkeys(keys)))
