"""Whole documents in sequences: none cut, each once an epoch, another order every time, as tight as a plain search makes it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.whole import WholeStream, best_fit
from limbeck.errors import DataError


def plain_best_fit(sizes: list[int], capacity: int) -> list[int]:
    """The filling of each bin, by looking at every bin for every size."""
    rooms: list[int] = []
    for size in sizes:
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(capacity - size)
    return sorted(capacity - room for room in rooms)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_bins_are_filled_as_by_a_plain_search(sizes: list[int], more: int) -> None:
    capacity, descending = max(sizes) + more, sorted(sizes, reverse=True)
    bins = best_fit(np.array(descending), capacity=capacity)
    assert sorted(place for each in bins for place in each) == list(range(len(sizes)))
    assert sorted(sum(descending[place] for place in each) for each in bins) == plain_best_fit(descending, capacity)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=40), st.integers(5, 30), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_an_epoch_holds_every_document_that_fits_once_and_whole(lengths: list[int], room: int, seed: int) -> None:
    fits = [index for index, length in enumerate(lengths) if length - 1 <= room]
    if not fits:
        with pytest.raises(DataError, match=rf"none of the .* documents fits .*; the shortest needs {min(lengths) - 1}"):
            WholeStream(np.array(lengths), sequence_length=room, seed=seed)
        return
    stream = WholeStream(np.array(lengths), sequence_length=room, seed=seed)
    number = round(sum(lengths[index] - 1 for index in fits) / ((1 - stream.padding_share) * room))
    assert (stream.left_out, stream.documents().tolist()) == (len(lengths) - len(fits), fits)
    for epoch in range(2):
        sequences = [stream.sequence(epoch * number + within) for within in range(number)]
        pieces = [piece for sequence in sequences for piece in sequence]
        assert sorted(piece.document for piece in pieces) == fits
        assert all((piece.start, piece.stop) == (0, lengths[piece.document] - 1) for piece in pieces)
        assert all(0 < sum(piece.stop for piece in sequence) <= room for sequence in sequences)
        held = sum(piece.stop for piece in pieces)
        assert stream.padding_share == pytest.approx(1 - held / (number * room))
        assert stream.rows_per_epoch == held


def test_epochs_and_seeds_differ_and_any_sequence_is_found_at_once() -> None:
    lengths = np.random.default_rng(0).integers(2, 30, 200)
    stream, again, other = (WholeStream(lengths, sequence_length=64, seed=seed) for seed in (1, 1, 2))
    number = round(stream.rows_per_epoch / ((1 - stream.padding_share) * 64))
    first, second = ([stream.sequence(epoch * number + i) for i in range(number)] for epoch in (0, 1))
    assert first != second
    assert first != [other.sequence(i) for i in range(number)]
    assert again.sequence(number + 7) == second[7]
    assert again.sequence(3) == first[3]
    assert (stream.distinct_rows(10), stream.distinct_rows(1e9)) == (10, stream.rows_per_epoch)


def test_bins_are_hardly_more_than_documents_need() -> None:
    """Of lengths like those of chats, 11/9 of the least number of sequences is far from what is used."""
    lengths = np.random.default_rng(1).lognormal(5, 0.8, 2000).astype(int) + 2
    assert WholeStream(np.minimum(lengths, 2000), sequence_length=2048, seed=0).padding_share < 0.01
