"""Depth by loss: which layers the loss on the calibration rows can best do without (arXiv 2408.11796, section 4.2).

A layer, or a block of them, is bypassed and the rows are read again: one pass for each candidate. What a layer costs is the
mean loss without it less the whole model's. Single layers are taken by their own rise, although losing two together may cost
more than losing each. Minitron found that the loss prefers scattered layers where downstream accuracy prefers a block, so both
are measured here (`limbeck.surgery.task_score`).
"""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor, nn

from limbeck.surgery.bypass import ModelReader, bypassed, mean_nats
from limbeck.surgery.cheapest import Cost


class LossCost:
    """What bypassing layers costs, in nats per token of some rows."""

    measures = ("loss_rise_nats",)

    def __init__(self, reader: ModelReader, layers: nn.ModuleList, rows: Sequence[Tensor]) -> None:
        self.reader, self.layers, self.rows = reader, layers, rows

    @cached_property
    def whole_nats(self) -> float:
        """Of the whole model."""
        return mean_nats(self.reader, self.rows)

    def __call__(self, places: Sequence[int]) -> Cost:
        """The rise of the mean loss without these layers; negative where they did harm."""
        whole_nats = self.whole_nats  # before anything is bypassed
        with bypassed(self.layers, places):
            return (mean_nats(self.reader, self.rows) - whole_nats,)
