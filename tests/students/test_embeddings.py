"""Hashed pairs, smeared embeddings and value embeddings, by their definitions; documents don't reach into one another."""

import pytest
import torch

from limbeck.spec.layout import BigramLayout
from limbeck.students.embeddings import BigramHash, Smear, ValueEmbedding, first_of_document


def bigram(buckets: int) -> BigramHash:
    """A table whose row i reads i, so that outputs tell buckets."""
    module = BigramHash(BigramLayout(buckets, 1), hidden_size=2).double()
    with torch.no_grad():
        module.table.weight[:, 0] = torch.arange(buckets)
        module.proj.weight.copy_(torch.tensor([[1.0], [10.0]]))
        module.scale.fill_(0.5)
    return module


@pytest.mark.parametrize("vocabulary", [1024, 201_088])  # products of the second pass 2**31
def test_pairs_are_hashed_as_integers_without_overflow(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    token_BT = torch.randint(0, vocabulary, (3, 50), generator=generator)
    token_BT[0, :2] = vocabulary - 1
    before_BT = torch.cat([token_BT[:, :1], token_BT[:, :-1]], 1)
    first_BT = torch.zeros(3, 50, dtype=torch.bool)
    first_BT[:, 0] = first_BT[1, 20] = True
    found = bigram(613)(token_BT, before_BT, first_BT)
    for row in range(3):
        for t in range(50):
            now, before = int(token_BT[row, t]), int(before_BT[row, t])
            bucket = 612 if first_BT[row, t] else ((36313 * now) ^ (27191 * before)) % 612
            assert found[row, t].tolist() == [0.5 * bucket, 5 * bucket]


def test_the_first_of_every_document_is_known():
    segments_BT = torch.tensor([[5, 5, 1, 1, 1, 5], [0, 0, 0, 0, 0, 0]])
    found = first_of_document(segments_BT, shape=segments_BT.shape, device=segments_BT.device)
    assert found.int().tolist() == [[1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0]]
    alone = first_of_document(None, shape=torch.Size((2, 3)), device=segments_BT.device)
    assert alone.int().tolist() == [[1, 0, 0], [1, 0, 0]]


def test_smearing_mixes_the_one_before():
    smear = Smear(3)
    with torch.no_grad():
        smear.gate_D.copy_(torch.tensor([0.0, 50.0, -50.0]))  # gates of 1/2, 1 and 0
    x = torch.tensor([[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]])
    before = torch.tensor([[[100.0, 100, 100], [1, 2, 3], [4, 5, 6]]])
    first = torch.tensor([[True, False, True]])
    expected = torch.tensor([[[0.5, 0, 3], [2.5, 2, 6], [3.5, 0, 9]]])
    torch.testing.assert_close(smear(x, before, first), expected, rtol=0, atol=1e-6)


def test_value_embeddings_are_scaled_projections():
    module = ValueEmbedding(vocab_size=11, size=4, width=6)
    with torch.no_grad():
        module.scale.fill_(0.25)
    token_BT = torch.tensor([[3, 0, 10]])
    expected = 0.25 * module.table.weight[token_BT] @ module.proj.weight.T
    torch.testing.assert_close(module(token_BT), expected)
