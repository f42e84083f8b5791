"""Models of many shards side by side: made once, kept within bounds, and what was handed out stays as it is."""

from typing import Any

import numpy as np
import pytest
import torch
from codec_rows import documents_for, encoded, whole

from limbeck.signals.codec import DamagedRowsError, Piece, decode, stack
from limbeck.signals.types import SampledRows
from limbeck.spec.signal import SampledSignal

SIGNAL = SampledSignal(draws=11)
VOCAB = 900


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    stack._kept.cache_clear()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The models that are made, in order."""
    keys: list[bytes] = []
    make = stack.read_model

    def counted(data: bytes, *arguments: Any) -> Any:
        keys.append(data)
        return make(data, *arguments)

    monkeypatch.setattr(stack, "read_model", counted)
    return keys


def shards(number: int) -> list[list[Piece]]:
    """The documents of each of some shards, whose models differ."""
    content = [documents_for(SIGNAL, [50, 20], vocab=VOCAB, seed=seed, power=2 + seed) for seed in range(number)]
    return [whole(encoded(documents, SIGNAL, VOCAB), documents) for documents in content]


def ids_of(pieces: list[Piece]) -> torch.Tensor:
    rows = decode(pieces, signal=SIGNAL, vocab_size=VOCAB).rows
    assert isinstance(rows, SampledRows)
    return torch.nn.functional.pad(rows.ids_TK, (0, SIGNAL.draws - rows.ids_TK.shape[1]))


def test_a_model_is_made_once_whatever_batches_it_is_in(made: list[bytes]) -> None:
    every = shards(30)
    rng = np.random.default_rng(0)
    for _ in range(30):
        ids_of([every[shard][int(rng.integers(2))] for shard in rng.choice(30, 8, replace=False)])
    assert len(made) == len(set(made)) == 30


def test_where_there_is_no_room_models_are_made_again(made: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    every = shards(6)
    alone = {id(piece): ids_of([piece]) for pieces in every for piece in pieces}
    stack._kept.cache_clear()
    made.clear()
    monkeypatch.setattr(stack, "MOST_BYTES", 0)
    rng = np.random.default_rng(1)
    for _ in range(20):
        batch = [every[shard][int(rng.integers(2))] for shard in rng.choice(6, 3, replace=False)]
        assert torch.equal(ids_of(batch), torch.cat([alone[id(piece)] for piece in batch]))
        assert len(stack._kept(SIGNAL, VOCAB)._arrays.models) == 3
    assert len(made) > 20


def test_what_a_reader_holds_stays_as_it_is() -> None:
    first, *others = [pieces[0].model for pieces in shards(9)]
    held = stack.stack_models([first], signal=SIGNAL, vocab_size=VOCAB)
    parts = [*vars(held.tables).values(), held.level_P, held.names]
    copies = [part.copy() for part in parts]
    stack.stack_models(others, signal=SIGNAL, vocab_size=VOCAB)
    assert all(np.array_equal(part, copy) for part, copy in zip(parts, copies, strict=True))


def test_a_damaged_model_leaves_the_others_alone() -> None:
    one, two = shards(2)
    expected = ids_of([*one, *two])
    stack._kept.cache_clear()
    ids_of(one)
    damaged = bytes([*two[0].model[:-1], two[0].model[-1] ^ 1])
    with pytest.raises(DamagedRowsError, match="changed since"):
        stack.stack_models([damaged], signal=SIGNAL, vocab_size=VOCAB)
    assert torch.equal(ids_of([*one, *two]), expected)
