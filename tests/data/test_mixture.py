"""Mixtures: shares exact at every prefix, parts independent of one another, sequences found in any order."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.mixture import MixedStream
from limbeck.data.packing import Piece, TokenStream

LENGTHS = (np.array([9, 30, 4]), np.array([50]), np.array([7, 7, 12]))
NUMBERS = (np.array([0, 1, 2]), np.array([3]), np.array([4, 1, 5]))
"""The second document of the third part is that of the first."""


def streams() -> list[TokenStream]:
    return [TokenStream(lengths, sequence_length=8, seed=5) for lengths in LENGTHS]


@given(st.lists(st.integers(1, 50), min_size=2, max_size=7))
@settings(max_examples=60, deadline=None)
def test_after_any_number_of_sequences_each_part_has_had_its_share_to_less_than_one(weights: list[int]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    part = TokenStream(np.array([9]), sequence_length=8, seed=0)
    mixed = MixedStream([part] * len(shares), shares=shares, documents_of_parts=[np.array([0])] * len(shares))
    had: Counter[int] = Counter()
    for index in range(300):
        chosen, before = mixed.place(index)
        assert before == had[chosen]
        had[chosen] += 1
        assert all(abs(had[each] - share * (index + 1)) < 1 for each, share in enumerate(shares))


def test_each_part_goes_on_where_it_was() -> None:
    mixed = MixedStream(streams(), shares=[0.5, 0.2, 0.3], documents_of_parts=NUMBERS)
    alone, had = streams(), [0, 0, 0]
    for index in range(100):
        part = mixed.place(index)[0]
        expected = [
            Piece(int(NUMBERS[part][piece.document]), piece.start, piece.stop) for piece in alone[part].sequence(had[part])
        ]
        assert mixed.sequence(index) == expected
        had[part] += 1
    assert had == [50, 20, 30]
    fresh = MixedStream(streams(), shares=[0.5, 0.2, 0.3], documents_of_parts=NUMBERS)
    assert [fresh.sequence(index) for index in (5000, 3)] == [mixed.sequence(index) for index in (5000, 3)]


def test_positions_are_counted_once_by_part() -> None:
    mixed = MixedStream(streams(), shares=[0.5, 0.25, 0.25], documents_of_parts=NUMBERS)
    assert mixed.rows_per_epoch == 40 + 49 + 23
    assert mixed.distinct_rows(80) == 40 + 20 + 20
    assert mixed.distinct_rows(120) == pytest.approx(40 + 30 + 23)
    assert mixed.documents().tolist() == [0, 1, 2, 3, 4, 5]


def test_a_checkpoint_can_hold_what_is_counted(tmp_path: Path) -> None:
    """It is read with `weights_only=True`, which knows no numbers of numpy's."""
    mixed = MixedStream(streams(), shares=[0.5, 0.25, 0.25], documents_of_parts=NUMBERS)
    for number, read in enumerate((7.0, 80, 1e6)):
        torch.save({"rows": mixed.distinct_rows(read)}, tmp_path / f"{number}.pt")
        assert torch.load(tmp_path / f"{number}.pt", weights_only=True)["rows"] == mixed.distinct_rows(read)
