"""Documents tokenised once by one tokenizer, memory-mapped.

    STORE/tokens.bin      uint32, all documents one after another
    STORE/offsets.npy     int64 [documents + 1], where each begins
    STORE/bytes.npy       int64 [documents], UTF-8 bytes of each document's text
    STORE/ids.npy         S32 [documents], document ids
    STORE/store.json      tokenizer fingerprint and what the texts were

A store is written beside its place and renamed into it, so it is there whole or not at all.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data import texts as text_sources
from limbeck.data.texts import Document
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.paths import cache_folder, put_in_place
from limbeck.progress import progress
from limbeck.spec.data import Data, Texts

FORMAT = 1
ENCODE_AT_ONCE = 256


@dataclass(frozen=True)
class TokenStore:
    """Tokenised documents. Document i is `tokens[offsets[i]:offsets[i + 1]]`, start and end tokens included."""

    path: Path
    tokens: np.ndarray
    offsets: np.ndarray
    bytes_per_document: np.ndarray
    ids: tuple[str, ...]
    tokenizer_fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)

    def document(self, index: int) -> np.ndarray:
        """uint32 tokens of one document."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [documents]: tokens of each."""
        return np.diff(self.offsets)

    @property
    def num_rows(self) -> int:
        """Positions that have a next token: what can be trained on, or scored, in one pass."""
        return int(self.offsets[-1]) - len(self)

    @property
    def documents_digest(self) -> str:
        """One name for the set of documents, whatever their order."""
        return hashlib.sha256("".join(sorted(self.ids)).encode("ascii")).hexdigest()[:32]


def open_token_store(path: Path) -> TokenStore:
    """Map a token store; `DataError` where it is missing or damaged."""
    try:
        about = json.loads((path / "store.json").read_text(encoding="utf-8"))
        offsets = np.load(path / "offsets.npy", allow_pickle=False)
        tokens = np.memmap(path / "tokens.bin", dtype=np.uint32, mode="r")
        ids = tuple(np.load(path / "ids.npy", allow_pickle=False).astype("U32").tolist())
        byte_counts = np.load(path / "bytes.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"token store {path} cannot be read ({error}): remove the folder, it will be made again") from error
    if not len(tokens) == offsets[-1] == about["tokens"] or not len(ids) == len(byte_counts) == len(offsets) - 1:
        raise DataError(f"token store {path} is damaged (files of different lengths): remove the folder, it will be made again")
    return TokenStore(path, tokens, offsets, byte_counts, ids, about["tokenizer"])


def prepare(data: Data, tokenizer: Tokenizer) -> tuple[TokenStore, TokenStore]:
    """The (training, held-out) token stores of a recipe, made on first use and kept in the user cache.

    A held-out document never trains: it is left out of the training documents by its id.
    """
    heldout = prepare_texts(data.heldout, tokenizer, title="held-out")
    return prepare_texts(data.train, tokenizer, title="training", exclude=heldout), heldout


def prepare_texts(texts: Texts, tokenizer: Tokenizer, *, title: str, exclude: TokenStore | None = None) -> TokenStore:
    """The token store of some texts less the documents of `exclude`, made on first use and kept in the user cache."""
    excluded = exclude.documents_digest if exclude is not None else None
    about = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "texts": texts.model_dump(mode="json"),
        "source": text_sources.fingerprint(texts),
        "excluded": excluded,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode("utf-8")).hexdigest()[:20]
    path = cache_folder() / "tokens" / key
    if not path.is_dir():
        forbidden = frozenset(exclude.ids) if exclude is not None else frozenset()
        documents: Iterable[Document] = (found for found in text_sources.read_documents(texts) if found.id not in forbidden)
        if texts.sample_tokens is not None:
            documents = sorted(documents, key=lambda found: found.id)
        write_token_store(path, documents, tokenizer, about=about, max_tokens=texts.sample_tokens, title=title)
    return open_token_store(path)


def write_token_store(
    path: Path,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    about: dict[str, Any],
    max_tokens: int | None,
    title: str,
) -> None:
    """Tokenise documents into a store at `path`, stopping after the document that reaches `max_tokens`."""
    building = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    building.mkdir(parents=True, exist_ok=True)
    ids: list[bytes] = []
    byte_counts: list[int] = []
    lengths: list[int] = []
    total = 0
    try:
        with (
            (building / "tokens.bin").open("wb") as file,
            progress(f"tokenising {title} documents", total=max_tokens or 0) as advance,
        ):
            for found, tokens in _encoded(documents, tokenizer):
                file.write(tokens.tobytes())
                ids.append(found.id.encode("ascii"))
                byte_counts.append(found.num_bytes)
                lengths.append(len(tokens))
                total += len(tokens)
                advance(len(tokens), f"{len(ids):,} documents, {total:,} tokens")
                if max_tokens is not None and total >= max_tokens:
                    break
        if not ids:
            raise DataError(f"no {title} documents: data.{'heldout' if title == 'held-out' else 'train'} holds no text")
        np.save(building / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        np.save(building / "bytes.npy", np.array(byte_counts, dtype=np.int64))
        np.save(building / "ids.npy", np.array(ids, dtype="S32"))
        (building / "store.json").write_text(json.dumps({**about, "tokens": total}, indent=1), encoding="utf-8")
        put_in_place(building, path)
    except OSError as error:
        raise DataError(f"token store {path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _encoded(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, np.ndarray]]:
    remaining = iter(documents)
    while group := list(islice(remaining, ENCODE_AT_ONCE)):
        yield from zip(group, tokenizer.encode([found.text for found in group]), strict=True)
