"""The rows over which importance is measured: texts, and complete chats with their end tokens, without padding.

Documents are read in the order of their ids, which is as good as random and always the same. Short ones are joined until they
fill a row; of long ones the first rows come first, so that many documents speak before one speaks twice. Chats are written by
the tokenizer's own template, and of long ones the last rows come first: without the ends of chats nothing speaks for the
channels that stop tokens need.

Shapes: T tokens of a row.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from limbeck.data.prepare import prepare, prepare_texts
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError, SpecError
from limbeck.evals.chat import chat_text, plain_tokens, require_template
from limbeck.gguf_folder import remembered_sha256
from limbeck.paths import cache_folder
from limbeck.progress import say
from limbeck.spec.data import Data
from limbeck.spec.prune import Calibration
from limbeck.surgery.identity import digest_of
from limbeck.surgery.importance import measure_importance, products_dtype
from limbeck.surgery.scores import Scores

FORMAT = 2
"""Of scores: another one where they are measured otherwise."""
_KEY = "student.prune.calibration"


def calibration_rows(calibration: Calibration, tokenizer: Tokenizer, *, data: Data | None = None) -> list[Tensor]:
    """Rows of token ids, int64 [T] each. `data` gives the texts where the calibration names none: its training texts.
    Of texts and of chats one row at least, where there are both.

    `SpecError` where there are neither texts nor chats, or fewer tokens than a row takes.
    """
    length, samples = calibration.sequence_length, calibration.samples
    store = _texts(calibration, tokenizer, data)
    chats: list[Tensor] = []
    if calibration.chats is not None:
        written = _chats(Path(calibration.chats), tokenizer)
        most = samples if store is None else max(1, samples // 2)
        chats = _rows(written, length, samples=most, source=f"chats={calibration.chats}", from_end=True)
    if store is None:
        return chats
    documents = (store.document(int(index)) for index in np.argsort(np.array(store.ids)))
    return _rows(documents, length, samples=max(1, samples - len(chats)), source="texts") + chats


def scores_of(model: Any, *, identity: str, tokenizer: Tokenizer, calibration: Calibration, data: Data | None = None) -> Scores:
    """The model's scores from the user cache, or measured now. `identity` tells it from others (`Parent.identity`)."""
    head = model.get_output_embeddings().weight
    dtype = products_dtype(head.device, held=head.dtype)
    key = scores_key(identity, tokenizer, calibration, data, dtype=dtype)
    path = cache_folder() / "surgery" / f"scores-{key}.safetensors"
    if path.is_file():
        try:
            scores = Scores.load(path)
            say(f"importance was measured before ({scores.tokens:,} tokens): {path}")
            return scores
        except (SafetensorError, KeyError):
            say(f"{path} is damaged: importance is measured again")
    scores = measure_importance(model, calibration_rows(calibration, tokenizer, data=data), dtype=dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    scores.save(path)
    return scores


def scores_key(identity: str, tokenizer: Tokenizer, calibration: Calibration, data: Data | None, *, dtype: torch.dtype) -> str:
    """One name for what scores depend on; `dtype` is that of matrix products."""
    store, read = _texts(calibration, tokenizer, data), calibration.chats
    return digest_of(
        {
            "format": FORMAT,
            "model": identity,
            "dtype": str(dtype),
            "tokenizer": tokenizer.fingerprint,
            "texts": store.documents_digest if store is not None else None,
            "chats": None if read is None else [remembered_sha256(_chats_file(read)), tokenizer.backend.chat_template],
            "samples": calibration.samples,
            "sequence_length": calibration.sequence_length,
        }
    )


def _texts(calibration: Calibration, tokenizer: Tokenizer, data: Data | None) -> TokenStore | None:
    """Tokenised, without the held-out documents where they are a recipe's training texts; None where chats are all there is."""
    if calibration.texts is not None:
        try:
            return prepare_texts(calibration.texts, tokenizer, title="calibration")
        except DataError as error:
            reason = str(error).replace("data.…", f"{_KEY}.texts.").replace("data.train", f"{_KEY}.texts")
            raise DataError(reason) from error
    if data is not None:
        return prepare(data, tokenizer)[0]
    if calibration.chats is None:
        raise SpecError(f"{_KEY} names neither texts nor chats: set {_KEY}.texts")
    return None


def _chats_file(name: str) -> Path:
    if not Path(name).is_file():
        raise SpecError(f"{_KEY}.chats={name} is no file (relative to {Path.cwd()}): name a .jsonl of chats")
    return Path(name)


def _chats(path: Path, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    require_template(tokenizer, remedy=f"remove {_KEY}.chats")
    with _chats_file(str(path)).open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield plain_tokens(tokenizer, _chat(tokenizer, line, source=f"{path}, line {number}"))


def _chat(tokenizer: Tokenizer, line: bytes, *, source: str) -> str:
    try:
        return chat_text(tokenizer, _messages(line, source), answers=False)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _messages(line: bytes, source: str) -> Sequence[dict[str, str]]:
    try:
        messages = json.loads(line)["messages"]
        complete = [{"role": str(each["role"]), "content": str(each["content"])} for each in messages]
        if not complete:
            raise ValueError("no messages")
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{source}: not a chat ({{'messages': [{{'role': …, 'content': …}}, …]}})") from error
    return complete


def _rows(documents: Iterable[np.ndarray], length: int, *, samples: int, source: str, from_end: bool = False) -> list[Tensor]:
    """At most `samples` rows: the first of every piece, then the second of every piece, and so on; or the last, and so on."""
    seen = 0
    held: list[np.ndarray] = []

    def pieces() -> Iterator[np.ndarray]:
        nonlocal seen
        for tokens in documents:
            held.append(tokens)
            seen += len(tokens)
            if sum(map(len, held)) >= length:
                yield np.concatenate(held)
                held.clear()

    def rows_of(piece: np.ndarray) -> np.ndarray:
        rest = len(piece) % length
        return piece[rest:].reshape(-1, length)[::-1] if from_end else piece[: len(piece) - rest].reshape(-1, length)

    found = [rows_of(piece) for piece in islice(pieces(), samples)]
    if not found:
        raise SpecError(
            f"{_KEY}.{source}: all documents together have {seen} tokens, fewer than one row of {length} "
            f"({_KEY}.sequence_length): name more, or shorten the rows"
        )
    places = sorted((place, piece) for piece, rows in enumerate(found) for place in range(len(rows)))[:samples]
    if len(places) < samples:
        say(f"{_KEY}.{source}: {len(places)} rows of {length} tokens, where {samples} were asked for")
    return [torch.from_numpy(found[piece][place].astype(np.int64)) for place, piece in places]
