"""Models under evaluation that are small, or made by hand."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from limbeck.data.tokenizers import load_tokenizer
from limbeck.evals.subject import EvalModel, open_model
from limbeck.spec.data import Texts
from limbeck.spec.teacher import Context, HuggingFaceTeacher


def teacher_of(folder: Path) -> HuggingFaceTeacher:
    """It reads 48 tokens at once, of which 16 again."""
    return HuggingFaceTeacher(model=str(folder), dtype="float32", context=Context(window=48, overlap=16))


def opened(folder: Path, texts: Texts | None, *, teacher: Path | None = None, **changes: Any) -> EvalModel:
    spec = teacher_of(teacher) if teacher is not None else None
    return open_model("tiny", str(folder), heldout=texts, teacher=spec, dtype="float32", device="cpu", **changes)


class ByHand:
    """A reader whose logits are a function of the tokens read so far."""

    head_VE = None
    device = torch.device("cpu")
    dtype = torch.float32
    vocab_size = 300
    weights = "by hand"

    def __init__(self, logits_of: Callable[[Tensor], Tensor], *, longest: int = 4096) -> None:
        self.logits_of = logits_of
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=longest))

    def logits(self, tokens_BT: Tensor) -> Tensor:
        return torch.stack([self.logits_of(tokens_T) for tokens_T in tokens_BT])


def by_hand(reader: ByHand, tokenizer: Path, texts: Texts | None = None) -> EvalModel:
    return EvalModel("by hand", reader, load_tokenizer(str(tokenizer)), texts, None)  # type: ignore[arg-type]


def uniform(tokens_T: Tensor) -> Tensor:
    return torch.zeros(len(tokens_T), 300)


def copier(tokens_T: Tensor) -> Tensor:
    """Sure that what followed a token last time follows again; all are alike to it where the token is new."""
    logits_TV = torch.zeros(len(tokens_T), 300)
    tokens = tokens_T.tolist()
    for place, token in enumerate(tokens):
        earlier = [before for before in range(place) if tokens[before] == token]
        if earlier:
            logits_TV[place, tokens[earlier[-1] + 1]] = 50.0
    return logits_TV
