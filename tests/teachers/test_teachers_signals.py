"""Rows of every kind made live are those that a store is written from."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.packing import Piece
from limbeck.data.token_store import TokenStore
from limbeck.signals.types import SparseRows
from limbeck.spec.signal import HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal
from limbeck.spec.teacher import Context
from limbeck.teachers.cache import score_documents
from limbeck.teachers.huggingface import Teacher
from limbeck.teachers.live import LiveRows

CONTEXT = Context(window=48, overlap=16)  # as the teacher of conftest
SIGNALS: list[StoredSignal] = [
    TopKSignal(k=20),
    TopPSignal(p=0.4, cap=60, temperature=0.25),
    SampledSignal(draws=30),
    SampledSignal(draws=30, min_draws=5, full_entropy_nats=6.0, keep_top1=True, temperature=0.25),
    SampledSignal(draws=30, proposal_temperature=1.4),
    HybridSignal(k=8, draws=16, temperature=0.25),
    HardSignal(),
]


def different_rows(one: SparseRows, other: SparseRows) -> torch.Tensor:
    """Whether a row's ids or counts differ; log-probs and masses are compared within rounding of the two forwards."""
    assert type(one) is type(other)
    differs = torch.zeros(len(one.ids_T if hasattr(one, "ids_T") else one.ids_TK), dtype=torch.bool)
    pairs = {}
    for field in fields(one):
        values = [getattr(rows, field.name) for rows in (one, other)]
        if values[0] is None or values[0].ndim == 1:
            pairs[field.name] = values
            continue
        width = max(value.shape[1] for value in values)
        filler = -math.inf if field.name == "log_probs_TK" else 0
        pairs[field.name] = [torch.nn.functional.pad(value, (0, width - value.shape[1]), value=filler) for value in values]
    for here, there in pairs.values():
        if here is not None and not here.is_floating_point():
            differs |= (here != there).view(len(here), -1).any(-1)
    for here, there in pairs.values():
        if here is not None and here.is_floating_point():
            torch.testing.assert_close(here[~differs], there[~differs], rtol=1e-4, atol=1e-5)
    return differs


@pytest.mark.parametrize("signal", SIGNALS, ids=str)
def test_live_rows_are_those_that_a_store_is_written_from(teacher: Teacher, tokens: TokenStore, signal: StoredSignal) -> None:
    longest = int(np.argmax(tokens.lengths))
    whole = [Piece(index, 0, int(length) - 1) for index, length in enumerate(tokens.lengths)]
    asked = [Piece(longest, 40, 120), *whole, Piece(longest, 47, 49), Piece(longest, 100, 101)]
    live = LiveRows(teacher, tokens, signal=signal, context=CONTEXT).rows(asked)
    documents = [tokens.document(index) for index in range(len(tokens.lengths))]
    scored = score_documents(teacher, documents, ids=tokens.ids, signals=[HardSignal(), signal], context=CONTEXT)
    start = 0
    different = []
    for piece in asked:
        stop = start + piece.stop - piece.start
        written = scored[piece.document][1]
        different.append(different_rows(_rows(live, start, stop), _rows(written, piece.start, piece.stop)))
        start = stop
    joined = torch.cat(different)
    assert len(joined) > 500
    assert joined.float().mean() < 0.02  # a draw or a cut within rounding of the two forwards may fall to either side


def _rows(rows: Any, start: int, stop: int) -> Any:
    values = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return type(rows)(**{name: value if value is None else value[start:stop] for name, value in values.items()})
