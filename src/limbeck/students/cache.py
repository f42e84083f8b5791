"""What generation remembers of the tokens read so far, so that a new one costs one position.

Shapes: B rows, K key/value heads, S positions so far, h channels of a head, D hidden size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class KeysValues:
    """Of one layer. Keys are kept as they were turned."""

    keys_BKSh: Tensor | None = None
    values_BKSh: Tensor | None = None
    travelled_B1: Tensor | None = None
    """How far contextual positions have moved on (GRAPE-M)."""

    def extend(self, k_BKTh: Tensor, v_BKTh: Tensor) -> tuple[Tensor, Tensor]:
        """Append, and return all."""
        if self.keys_BKSh is not None and self.values_BKSh is not None:
            k_BKTh = torch.cat([self.keys_BKSh, k_BKTh], 2)
            v_BKTh = torch.cat([self.values_BKSh, v_BKTh], 2)
        self.keys_BKSh, self.values_BKSh = k_BKTh, v_BKTh
        return k_BKTh, v_BKTh


@dataclass
class Cache:
    """Of a whole student. One document a row, without padding."""

    layers: list[KeysValues] = field(default_factory=list)
    token_B1: Tensor | None = None
    """The last token, which hashed pairs need."""
    embedding_B1D: Tensor | None = None
    """The last embedding, which smearing needs."""
    length: int = 0
