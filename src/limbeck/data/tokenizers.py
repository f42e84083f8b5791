"""Tokenizers: a Hugging Face tokenizer with a fingerprint, and one convention for where a document starts and ends.

A tokenised document is `[start] text [end]`. With a start token every token of the text is predicted exactly once, so bits per
byte divides by the bytes of the text and needs no further convention. `start` is the tokenizer's beginning-of-sequence token,
or its end-of-sequence token where it has none (as OLMo and GPT-2 separate documents).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import DataError, first_line


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, ready to encode. `fingerprint` is equal exactly where the ids of every text are."""

    backend: Any
    folder: str
    size: int
    start_id: int
    end_id: int
    fingerprint: str

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """uint32 ids of each text, with start and end."""
        encoded = self.backend(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return [np.array([self.start_id, *ids, self.end_id], dtype=np.uint32) for ids in encoded]


def load_tokenizer(folder: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a folder or hub id; `DataError` where there is none, or none that can end a document.

    Python code that comes with a tokenizer runs only if `trust_remote_code` says so.
    """
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer can be loaded from {folder}: {first_line(error)}") from error
    end_id = backend.eos_token_id
    if end_id is None:
        raise DataError(f"the tokenizer of {folder} has no end-of-sequence token, so documents cannot be told apart")
    start_id = backend.bos_token_id if backend.bos_token_id is not None else end_id
    return Tokenizer(backend, folder, len(backend), start_id, end_id, _fingerprint(backend, start_id, end_id))


def _fingerprint(backend: Any, start_id: int, end_id: int) -> str:
    if getattr(backend, "is_fast", False):
        # Truncation and padding settings are a caller's, not the tokenizer's.
        state = json.loads(backend.backend_tokenizer.to_str())
        described = {key: state[key] for key in state if key not in {"truncation", "padding"}}
    else:
        described = {"class": type(backend).__name__, "vocab": backend.get_vocab()}
    text = json.dumps([described, start_id, end_id], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files into a model folder."""
    tokenizer.backend.save_pretrained(folder)
