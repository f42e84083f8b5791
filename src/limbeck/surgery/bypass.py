"""A model without some of its layers, while nothing is cut: what goes into a bypassed layer comes out of it.

What it then says of rows of tokens is read as any model under evaluation is (`limbeck.teachers.score`). Shapes: B rows, T
positions, E width, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.evals.answer_nats import continuation_nats
from limbeck.students.causal_lm import head_of
from limbeck.students.decoder import BlockOutput


class ModelReader:
    """A `limbeck.teachers.score.Reader` around a transformers model; it reads without a cache."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = model.device
        head = head_of(model)
        self.head_VE = head.weight_VE if head is not None and head.is_plain else None

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Hidden states [B, T, E] after the final norm."""
        hidden_BTE: Tensor = self.model.base_model(input_ids=tokens_BT.to(self.device), use_cache=False).last_hidden_state
        return hidden_BTE

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        logits_BTV: Tensor = self.model(input_ids=tokens_BT.to(self.device), use_cache=False).logits
        return logits_BTV


@contextmanager
def bypassed(layers: nn.ModuleList, places: Collection[int]) -> Iterator[None]:
    """Within the block the layers at `places` pass on what they are given."""
    with ExitStack() as hooks:
        for place in places:
            handle = layers[place].register_forward_hook(_pass_on, with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def mean_nats(reader: ModelReader, rows: Sequence[Tensor]) -> float:
    """Nats per token of rows [T], each read alone, all but their first tokens predicted.

    `LimbeckError` where that is not finite: the model says nothing there that could be compared.
    """
    tokens = [row.cpu().numpy().astype(np.int64) for row in rows]
    total = sum(continuation_nats(reader, [(row[:1], row[1:]) for row in tokens]))
    nats = total / sum(len(row) - 1 for row in tokens)
    if not np.isfinite(nats):
        raise LimbeckError(f"{reader.model.config.name_or_path or 'the model'} has a loss of {nats}: its weights are damaged")
    return nats


def _pass_on(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
    """What goes in, in the form of what came out: some layers return a tuple, and those of Limbeck a record."""
    hidden_BTE = arguments[0] if arguments else keywords["hidden_states"]
    match output:
        case Tensor():
            return hidden_BTE
        case BlockOutput():
            return replace(output, x_BTD=hidden_BTE)
        case _:
            return (hidden_BTE, *output[1:])
