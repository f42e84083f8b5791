"""Rollouts: continuations of prompts, each token drawn from a model's whole distribution at temperature 1.

On-policy, nothing sharpens or cuts the distribution: the divergence that is minimised is that of the policy which drew. The
log-prob of every drawn token is kept as it was when it was drawn, for the ratio that corrects what a student has learnt since.

transformers generates, with keys and values remembered and prompts padded on the left; students of Limbeck's own kinds read
prompts of equal length together (`limbeck.students.registered`). The weights are the student's own modules, not a copy of them.

Shapes: B rows, T positions, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.compute import autocast
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import LimbeckError
from limbeck.evals.chat import stops_of
from limbeck.evals.generate import Prompt, batches_of, cuda_devices, decoding_settings, padded_left
from limbeck.evals.repetition import terminal_loop
from limbeck.spec.evals.decoding import Decoding

Writer = Literal["student", "teacher"]
Outcome = Literal["stopped", "truncated", "loop"]


@dataclass(frozen=True)
class Continuation:
    """What was drawn after a prompt."""

    tokens: tuple[int, ...]
    """The stop token included, where one was drawn."""
    log_probs: tuple[float, ...]
    """Of each token, when it was drawn; nats."""
    stopped: bool
    """False: it was cut off at the limit."""


@dataclass(frozen=True)
class Rollout:
    """A prompt and its continuation."""

    step: int
    """Before which it was written, counted from 1."""
    writer: Writer
    prompt: str
    """Its name."""
    prompt_tokens: tuple[int, ...]
    continuation: Continuation
    text: str
    """Of the continuation."""

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Prompt and continuation."""
        return np.array([*self.prompt_tokens, *self.continuation.tokens], dtype=np.int64)

    @property
    def written(self) -> tuple[int, ...]:
        """The continuation without its stop token."""
        return self.continuation.tokens[:-1] if self.continuation.stopped else self.continuation.tokens

    @property
    def outcome(self) -> Outcome:
        """A loop is one that the continuation ends in; one that is then left by stopping has stopped."""
        if self.continuation.stopped:
            return "stopped"
        return "truncated" if terminal_loop(self.written) is None else "loop"


class Sampler(Protocol):
    """Continues prompts. What it draws depends on its weights, the prompts and the key alone, where it can be so."""

    def refresh(self, step: int, write: Callable[[], Path]) -> None:
        """Be told that a step begins, by one process before all draw; `write` makes a folder of the student as it is."""
        ...

    def draw(self, prompts: Sequence[Prompt], *, key: str) -> list[Continuation]:
        """A continuation of each prompt, in their order."""
        ...


class TransformersSampler:
    """transformers' generation with a model that is in this process."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        max_new_tokens: int,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        """`model` is one of transformers, in place; `dtype` is that of its matrix products.

        Where a temperature (0: greedy) or `top_p` sharpens what is drawn, log-probs are still those of the model as it is.
        """
        self.model, self.dtype, self.device = model, dtype, device
        self.batch_size = batch_size
        self.stops = stops_of(model, tokenizer, vocab_size=vocab_size)
        sharpened = {"temperature": temperature} | ({"top_p": top_p} if temperature else {})
        self.how = Decoding(max_new_tokens=max_new_tokens, batch_size=batch_size, **sharpened)

    def refresh(self, step: int, write: Callable[[], Path]) -> None:
        """Nothing: the weights are the student's own."""

    def draw(self, prompts: Sequence[Prompt], *, key: str) -> list[Continuation]:
        """A continuation of each prompt, in their order."""
        drawn: dict[int, Continuation] = {}
        groups = batches_of(prompts, size=self.batch_size, padded=self.model.config.model_type != "limbeck")
        with _for_inference(self.model):
            for number, rows in enumerate(groups):
                drawn |= zip(rows, self._batch([prompts[row] for row in rows], key=f"{key} {number}"), strict=True)
        return [drawn[row] for row in range(len(prompts))]

    def _batch(self, prompts: Sequence[Prompt], *, key: str) -> list[Continuation]:
        token_BT, mask_BT = padded_left(prompts, pad=self.stops[0])
        chosen = _ChosenLogProbs()
        with (
            torch.no_grad(),
            autocast(self.dtype, self.device),
            torch.random.fork_rng(devices=cuda_devices(self.device)),
            decoding_settings(self.model, self.how, self.stops),
        ):
            torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
            try:
                found_BT = self.model.generate(
                    input_ids=token_BT.to(self.device), attention_mask=mask_BT.to(self.device), logits_processor=[chosen]
                )
            except torch.OutOfMemoryError as error:
                raise LimbeckError(
                    f"{len(prompts)} rollouts at once don't fit into {self.device}: lower engine.batch_size"
                ) from error
        drawn_BT = found_BT[:, token_BT.shape[1] :]
        rows = zip(drawn_BT.tolist(), chosen.of_all(drawn_BT).tolist(), strict=True)
        return [ended(*row, stops=self.stops) for row in rows]


def ended(tokens: Sequence[int], log_probs: Sequence[float], *, stops: Sequence[int]) -> Continuation:
    """A row up to its first stop token: one that stopped early may be filled up."""
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    length = len(tokens) if end is None else end + 1
    # Nine digits are every bit of a float32, and what the file of rollouts keeps.
    kept = tuple(float(f"{value:.9g}") for value in log_probs[:length])
    return Continuation(tuple(tokens[:length]), kept, stopped=end is not None)


class _ChosenLogProbs:
    """A logits processor that changes nothing and keeps the log-prob of each token that is drawn: [B] a token, never [B, V]."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []
        self._scores_BV: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._keep(input_ids[:, -1])
        self._scores_BV = scores
        return scores

    def of_all(self, drawn_BT: Tensor) -> Tensor:
        """Of everything that was drawn, [B, T], once it was."""
        if len(self._found) < drawn_BT.shape[1]:  # on CUDA the end may be noticed one forward pass late
            self._keep(drawn_BT[:, -1])
        self._scores_BV = None
        return torch.stack(self._found[: drawn_BT.shape[1]], 1)

    def _keep(self, token_B: Tensor) -> None:
        """What the last scores gave the token that was then drawn from them."""
        if self._scores_BV is not None:
            chosen_B = self._scores_BV.gather(1, token_B[:, None]).squeeze(1)
            self._found.append(chosen_B - self._scores_BV.logsumexp(1))


@contextmanager
def _for_inference(model: nn.Module) -> Iterator[None]:
    """Without dropout, and so that autocast casts each weight once: it remembers those alone that gradients are asked of."""
    was = {module: module.training for module in model.modules()}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad and parameter.is_floating_point()]
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in was.items():
            module.training = training
