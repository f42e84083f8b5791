"""The stream of positions: every position once an epoch, from the seed alone; batches that say what they hold."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.loader import Loader
from limbeck.data.packing import TokenStream
from limbeck.data.prepare import prepare
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.data.windows import windows
from limbeck.spec.data import Data

lengths = st.lists(st.integers(2, 40), min_size=1, max_size=12)


@given(lengths, st.integers(1, 17), st.integers(0, 3))
def test_an_epoch_holds_every_position_exactly_once(lengths: list[int], sequence_length: int, seed: int) -> None:
    stream = TokenStream(np.array(lengths), sequence_length=sequence_length, seed=seed)
    epochs = sequence_length  # so many epochs end exactly at a sequence's end
    seen: Counter[tuple[int, int]] = Counter()
    for index in range(epochs * stream.rows_per_epoch // sequence_length):
        pieces = stream.sequence(index)
        assert sum(piece.stop - piece.start for piece in pieces) == sequence_length
        seen.update((piece.document, position) for piece in pieces for position in range(piece.start, piece.stop))
    expected = {(document, position) for document, length in enumerate(lengths) for position in range(length - 1)}
    assert seen == dict.fromkeys(expected, epochs)


def test_epochs_differ_in_order_and_seeds_too() -> None:
    def order(epoch: int, seed: int) -> list[int]:
        stream = TokenStream(np.full(30, 11), sequence_length=10, seed=seed)
        return [stream.sequence(30 * epoch + place)[0].document for place in range(30)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


@given(st.integers(1, 200), st.integers(1, 30), st.data())
def test_windows_score_every_position_once_with_enough_context(rows: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    found = windows(rows, window=window, overlap=overlap)
    assert [position for each in found for position in range(each.first, each.stop)] == list(range(rows))
    for each in found:
        assert each.stop - each.start <= window
        assert each.first - each.start == (0 if each.first == 0 else overlap)


@pytest.fixture
def store(values: dict[str, Any], teacher_folder: Path) -> TokenStore:
    return prepare(Data.model_validate(values["data"]), load_tokenizer(str(teacher_folder)))[0]


def loader(store: TokenStore, **changes: Any) -> Loader:
    stream = TokenStream(store.lengths, sequence_length=32, seed=0)
    settings: dict[str, Any] = {
        "packing": "documents",
        "sequences": 4,
        "micro_sequences": 4,
        "rank": 0,
        "world_size": 1,
        "source": None,
    }
    return Loader(store, stream=stream, **{**settings, **changes})


def test_targets_are_the_next_tokens_of_the_same_document(store: TokenStore) -> None:
    (batch,) = loader(store).step(3)
    assert batch.segments_BT is not None
    row = 0
    tokens, targets = batch.tokens_BT.flatten(), batch.targets_BT.flatten()
    for piece in batch.pieces:
        document = store.document(piece.document)
        for position in range(piece.start, piece.stop):
            assert tokens[row] == document[position]
            assert targets[row] == document[position + 1]
            assert batch.positions_BT.flatten()[row] == position - piece.start
            row += 1
    assert row == tokens.numel()


def test_ranks_and_micro_batches_share_a_step_without_overlap(store: TokenStore) -> None:
    (whole,) = loader(store).step(5)
    parts = [loader(store, rank=rank, world_size=2, micro_sequences=1).step(5) for rank in (0, 1)]
    assert [len(part) for part in parts] == [2, 2]
    shared = sorted(tuple(row.tolist()) for part in parts for batch in part for row in batch.tokens_BT)
    assert shared == sorted(tuple(row.tolist()) for row in whole.tokens_BT)


def test_plain_packing_reads_a_sequence_as_one_text(store: TokenStore) -> None:
    (batch,) = loader(store, packing="plain").step(0)
    assert batch.segments_BT is None
    assert batch.positions_BT[0].tolist() == list(range(32))


def test_fetching_ahead_gives_the_same_batches_and_passes_errors_on(store: TokenStore) -> None:
    ahead = loader(store).steps(2)
    for step in (2, 3, 4):
        assert next(ahead)[0].tokens_BT.equal(loader(store).step(step)[0].tokens_BT)
    ahead.close()

    class Broken:
        is_live, bytes_read, tokens_scored = False, 0, 0

        def rows(self, pieces: object) -> None:
            raise RuntimeError("no rows today")

    with pytest.raises(RuntimeError, match="no rows today"):
        next(loader(store, source=Broken()).steps(0))
