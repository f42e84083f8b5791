"""What is added to plain embeddings: hashed pairs, a part of the token before, and embeddings for values.

The first two look at the token before; a document's first position has none, in a packed row as in a row of its own.

Shapes: B rows, T positions, D hidden size, C channels of all key/value heads.
"""

import torch
from torch import Tensor, nn

from limbeck.spec.layout import BigramLayout

_FACTORS = (36_313, 27_191)


def first_of_document(segments_BT: Tensor | None, *, shape: torch.Size, device: torch.device) -> Tensor:
    """True at the first position of every document."""
    first_BT = torch.zeros(shape, dtype=torch.bool, device=device)
    first_BT[:, 0] = True
    if segments_BT is not None:
        first_BT[:, 1:] |= segments_BT[:, 1:] != segments_BT[:, :-1]
    return first_BT


class BigramHash(nn.Module):
    """An embedding of each pair (token before, token), hashed to `buckets` - 1; the last one is for tokens that are first.

    The hash is (36313 t XOR 27191 t_before) mod (buckets - 1) in 64 bits (parameter-golf has 32, which is the same for
    vocabularies below 59,000).
    """

    def __init__(self, layout: BigramLayout, *, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(layout.buckets, layout.size)
        self.proj = nn.Linear(layout.size, hidden_size, bias=False)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, token_BT: Tensor, before_BT: Tensor, first_BT: Tensor) -> Tensor:
        last = self.table.num_embeddings - 1
        pair_BT = (_FACTORS[0] * token_BT ^ _FACTORS[1] * before_BT) % last
        return self.scale * self.proj(self.table(torch.where(first_BT, last, pair_BT)))


class Smear(nn.Module):
    """x <- (1 - g) x + g x_before, with a learned gate g for each channel; before the first there is 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gate_D = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x_BTD: Tensor, before_BTD: Tensor, first_BT: Tensor) -> Tensor:
        gate_D = torch.sigmoid(self.gate_D).to(x_BTD.dtype)
        return (1 - gate_D) * x_BTD + gate_D * before_BTD.masked_fill(first_BT[..., None], 0)


class ValueEmbedding(nn.Module):
    """A second embedding of the token, projected to the width of values; layers that use it have a factor each."""

    def __init__(self, *, vocab_size: int, size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, size)
        self.proj = nn.Linear(size, width, bias=False)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, token_BT: Tensor) -> Tensor:
        return self.scale * self.proj(self.table(token_BT))
