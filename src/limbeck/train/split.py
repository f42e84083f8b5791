"""A teacher on another device than its student (`placement.kind=split`): its rows move over, its head lies on both."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from limbeck.compute import pick_device
from limbeck.data.packing import Piece
from limbeck.errors import LimbeckError, SpecError, first_line
from limbeck.signals.rows import to_device
from limbeck.signals.types import DenseRows, SignalRows
from limbeck.spec.placement import SplitDevices
from limbeck.spec.recipe import Recipe
from limbeck.teachers.live import LiveRows


def teacher_device(recipe: Recipe, *, device: torch.device) -> torch.device:
    """Where this process's teacher goes whose student is on `device`. `SpecError` where that device is not there."""
    if not isinstance(recipe.placement, SplitDevices):
        return device
    name = recipe.placement.teacher_device
    if name is not None:
        try:
            return pick_device(name)
        except LimbeckError as error:
            raise SpecError(f"placement.teacher_device={name} cannot be used here: {first_line(error)}") from error
    if device.type != "cuda":
        raise SpecError(
            f"placement.kind=split on device={device.type}: say where the teacher goes (placement.teacher_device), or set "
            "placement.kind=same"
        )
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here + (device.index or 0) >= there:
        raise SpecError(
            f"placement.kind=split: students of {here} processes and their teachers want {2 * here} CUDA devices of this "
            f"machine, which has {there}: start fewer processes, or set placement.teacher_device"
        )
    return torch.device("cuda", here + (device.index or 0))


class MovedRows:
    """A `RowSource` that brings another one's rows to a device."""

    def __init__(self, source: LiveRows, device: torch.device) -> None:
        self.source, self.device = source, device
        self._head_VE = source.head_VE.to(device)

    @property
    def is_live(self) -> bool:
        """True."""
        return True

    @property
    def bytes_read(self) -> int:
        """Nothing is read from disk."""
        return 0

    @property
    def tokens_scored(self) -> int:
        """By the teacher."""
        return self.source.tokens_scored

    def rows(self, pieces: Sequence[Piece]) -> SignalRows:
        """The teacher's rows at every position of the pieces."""
        return self._moved(self.source.rows(pieces))

    def rows_of(self, sequences: Sequence[np.ndarray]) -> SignalRows:
        """The teacher's rows at every position but the last of sequences of tokens, each read whole and alone."""
        return self._moved(self.source.rows_of(sequences))

    def _moved(self, rows: SignalRows) -> SignalRows:
        if isinstance(rows, DenseRows):  # the head is there already
            return replace(rows, hidden_TE=rows.hidden_TE.to(self.device), head_VE=self._head_VE)
        return to_device(rows, self.device)
