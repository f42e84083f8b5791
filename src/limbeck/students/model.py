"""What training, measuring and saving ask of any student, whoever wrote its layers.

Shapes: B rows, T positions, D hidden size, V vocabulary, M layers with experts, E experts.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Reading:
    """What a student says of tokens."""

    hidden_BTD: Tensor
    """After the final norm: logits are `hidden_BTD @ head_VD.T`, under the softcap where there is one."""
    load_ME: Tensor | None = None
    """Tokens that each expert saw, layer by layer; float32, no gradient. None without experts."""
    balance: Tensor | None = None
    """The balance loss of all layers with its weight; None without experts."""


class StudentModel(nn.Module, ABC):
    """A student: a module whose `forward` ends before the head.

    Its `state_dict` holds all that training changes. Where optimizers should not go by modules and shapes, it has a method
    `placements` (`limbeck.roles`).
    """

    @property
    @abstractmethod
    def head_VD(self) -> Tensor:
        """The output matrix: logits are hidden_BTD @ head_VD.T."""

    @property
    @abstractmethod
    def softcap(self) -> float | None:
        """Logits are softcap * tanh(logits / softcap)."""

    @abstractmethod
    def forward(self, token_BT: Tensor, *, positions_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Reading:
        """Hidden states after the final norm, for int64 `token_BT`.

        `positions_BT` (int64) defaults to 0, 1, 2, ... in each row. `segments_BT` (int64) numbers the documents packed into a
        row, -1 padding: a position sees its own document alone.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states, under the softcap."""
        logits = nn.functional.linear(hidden, self.head_VD.to(hidden.dtype))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def set_fraction(self, fraction: float) -> None:
        """How much of the budget is spent, before each step."""

    def rebalance(self, load_ME: Tensor) -> None:
        """After an optimizer step: what each expert saw in it, on all processes."""

    def settle(self) -> None:
        """At the end of a run, before it is measured: what was trained beside weights goes into them."""
