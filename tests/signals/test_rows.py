"""Rows put together, padded and moved."""

import math

import pytest
import torch

from limbeck.signals.rows import concatenate, to_device
from limbeck.signals.types import HardRows, HybridRows, SampledRows, TopKRows


def topk(width: int) -> TopKRows:
    ids = torch.arange(2 * width).view(2, width)
    return TopKRows(ids, -ids.float(), torch.tensor([0.25, 0.5]), torch.tensor([1.0, 2.0]))


def test_shorter_heads_are_padded_with_nothing() -> None:
    joined = concatenate([topk(1), topk(3)])
    assert isinstance(joined, TopKRows)
    assert joined.ids_TK.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 2], [3, 4, 5]]
    assert joined.log_probs_TK.tolist()[:2] == [[0.0, -math.inf, -math.inf], [-1.0, -math.inf, -math.inf]]
    assert joined.log_probs_TK.tolist()[2:] == [[0.0, -1.0, -2.0], [-3.0, -4.0, -5.0]]
    assert joined.tail_T.tolist() == [0.25, 0.5, 0.25, 0.5]
    assert joined.entropy_T.tolist() == [1.0, 2.0, 1.0, 2.0]


def test_draws_keep_their_weights_and_top_1() -> None:
    one = SampledRows(torch.tensor([[7]]), torch.tensor([[3]]), torch.ones(1), torch.tensor([[0.5]]), torch.tensor([9]))
    two = SampledRows(
        torch.tensor([[1, 2]]), torch.tensor([[1, 2]]), torch.zeros(1), torch.tensor([[2.0, 3.0]]), torch.tensor([1])
    )
    joined = concatenate([one, two])
    assert isinstance(joined, SampledRows)
    assert joined.ids_TK.tolist() == [[7, 0], [1, 2]]
    assert joined.counts_TK.tolist() == [[3, 0], [1, 2]]
    assert joined.weights_TK is not None
    assert joined.weights_TK.tolist() == [[0.5, 0.0], [2.0, 3.0]]
    assert joined.top1_T is not None
    assert joined.top1_T.tolist() == [9, 1]
    plain = SampledRows(one.ids_TK, one.counts_TK, one.entropy_T)
    both = concatenate([plain, plain])
    assert isinstance(both, SampledRows)
    assert both.weights_TK is None
    assert both.top1_T is None
    with pytest.raises(AssertionError, match="weights_TK is missing in some"):
        concatenate([one, plain])


def test_a_hybrids_head_and_draws_are_padded_apart() -> None:
    def rows(head: int, drawn: int) -> HybridRows:
        part = topk(head)
        ones = torch.ones(2, drawn, dtype=torch.int64)
        return HybridRows(part.ids_TK, part.log_probs_TK, part.tail_T, 5 * ones, ones, part.entropy_T)

    joined = concatenate([rows(2, 0), rows(2, 3)])
    assert isinstance(joined, HybridRows)
    assert joined.ids_TK.shape == (4, 2)
    assert joined.drawn_ids_TM.tolist() == [[0, 0, 0]] * 2 + [[5, 5, 5]] * 2
    assert joined.counts_TM.tolist() == [[0, 0, 0]] * 2 + [[1, 1, 1]] * 2


def test_different_signals_do_not_mix() -> None:
    with pytest.raises(AssertionError, match="different signals"):
        concatenate([topk(2), HardRows(torch.zeros(2, dtype=torch.int64))])


def test_every_tensor_moves() -> None:
    moved = to_device(topk(2), torch.device("meta"))
    assert {value.device.type for value in vars(moved).values()} == {"meta"}
    plain = SampledRows(topk(2).ids_TK, topk(2).ids_TK, torch.ones(2))
    assert to_device(plain, torch.device("meta")).weights_TK is None
