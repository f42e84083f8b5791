"""Which prompts the steps of an on-policy run continue: those of a file or the beginnings of documents, in a seed's order.

As the texts' own order (`limbeck.data.packing`), it is endless, epoch after epoch, and the i-th prompt is found without those
before it, so that a run resumes where it was.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError, SpecError
from limbeck.evals.generate import Prompt
from limbeck.evals.prompts import prompts_in
from limbeck.spec.on_policy import DocumentPrompts, FilePrompts
from limbeck.spec.recipe import Recipe


class PromptStream:
    """The endless stream of prompts."""

    def __init__(self, prompts: list[Prompt], *, seed: int) -> None:
        self.prompts, self.seed = prompts, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def prompt(self, index: int) -> Prompt:
        """The i-th of the stream."""
        epoch, within = divmod(index, len(self.prompts))
        return self.prompts[int(self._order(epoch)[within])]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.prompts))


def open_prompts(recipe: Recipe, train: TokenStore, tokenizer: Tokenizer) -> PromptStream:
    """The prompts of a recipe; `DataError` where there are none, `SpecError` where one leaves no room for its continuation."""
    assert recipe.on_policy is not None
    match recipe.on_policy.prompts:
        case FilePrompts(path=path):
            prompts = prompts_in(Path(path), tokenizer)
            if not prompts:
                raise DataError(f"on_policy.prompts.path={path} holds no prompt")
        case DocumentPrompts(tokens=tokens):
            prompts = _beginnings(train, tokenizer, tokens=tokens)
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    if len(longest.tokens) + recipe.on_policy.max_new_tokens > recipe.data.sequence_length:
        raise SpecError(
            f"prompt {longest.name} has {len(longest.tokens)} tokens, which with on_policy.max_new_tokens="
            f"{recipe.on_policy.max_new_tokens} are more than data.sequence_length={recipe.data.sequence_length}: change one "
            "of them, or shorten the prompt"
        )
    return PromptStream(prompts, seed=recipe.seed)


def _beginnings(train: TokenStore, tokenizer: Tokenizer, *, tokens: int) -> list[Prompt]:
    """The start token and so many more, of every document that goes on from there."""
    length = 1 + tokens
    found = []
    for index in np.flatnonzero(train.lengths > length + 1).tolist():
        begins = train.document(index)[:length].astype(np.int64)
        text = tokenizer.backend.decode(begins[1:].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found.append(Prompt(train.ids[index], text, begins))
    if not found:
        raise DataError(f"no training document has more than on_policy.prompts.tokens={tokens} tokens: lower it")
    return found
