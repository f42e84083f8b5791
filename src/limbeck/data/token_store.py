"""Documents tokenised once by one tokenizer, memory-mapped.

    STORE/tokens.bin      uint32, all documents one after another
    STORE/offsets.npy     int64 [documents + 1], where each begins
    STORE/bytes.npy       int64 [documents], UTF-8 bytes of each document's text; of a chat, of the bodies that count
    STORE/ids.npy         S32 [documents], document ids
    STORE/bodies.bin      of chats: int32, the number of the body that each token is of, -1 for the template's
    STORE/counted.bin     of chats: bool, whether each token is learnt
    STORE/store.json      tokenizer fingerprint and what the texts were; of chats, their traces and what is left out

A store is written beside its place and renamed into it, so it is there whole or not at all. Several stores can be seen as one
(`joined`), whose documents lie where they are.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import DataError
from limbeck.paths import put_in_place
from limbeck.progress import progress


@dataclass(frozen=True)
class TokenStore:
    """Tokenised documents. Document i is `tokens[offsets[i]:offsets[i + 1]]`, start and end tokens included.

    Of a joined store `tokens` is empty, and documents are had by `document` alone.
    """

    path: Path
    tokens: np.ndarray
    offsets: np.ndarray
    bytes_per_document: np.ndarray
    """Of the text that bits per byte measures."""
    ids: tuple[str, ...]
    tokenizer_fingerprint: str
    counted_tokens: np.ndarray | None = None
    body_numbers: np.ndarray | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """What store.json says. Of chats `about["chats"]`: `traces` by effort, `left_out` by reason, `traces_unsaid`, `bodies`."""
    parts: tuple["TokenStore", ...] = ()
    """Of a joined store, those that it joins."""
    documents_of_parts: tuple[np.ndarray, ...] = ()
    """Of each part, the numbers that its documents have here."""

    def __len__(self) -> int:
        return len(self.ids)

    def document(self, index: int) -> np.ndarray:
        """uint32 tokens of one document."""
        if self.parts:
            part, place = self._places[index]
            return self.parts[part].document(int(place))
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def counted(self, index: int) -> np.ndarray | None:
        """bool, of each token of a document whether it counts as a target; None: all do."""
        if self.parts:
            part, place = self._places[index]
            return self.parts[part].counted(int(place))
        return None if self.counted_tokens is None else self.counted_tokens[self.offsets[index] : self.offsets[index + 1]]

    def bodies(self, index: int) -> np.ndarray | None:
        """int32, of each token of a chat the number of the body that it is of, -1 for the template's; None for plain text."""
        if self.parts:
            part, place = self._places[index]
            return self.parts[part].bodies(int(place))
        return None if self.body_numbers is None else self.body_numbers[self.offsets[index] : self.offsets[index + 1]]

    def measured(self, index: int) -> np.ndarray:
        """bool, of each token whether bits per byte measures it: it is text, and of a chat a body's that counts.

        Neither the start nor the end token is text. `bytes_per_document` holds the bytes of these tokens.
        """
        bodies, counted = self.bodies(index), self.counted(index)
        if bodies is not None:
            return (bodies >= 0) & (True if counted is None else counted)
        found = np.ones(int(self.lengths[index]), dtype=bool)
        found[[0, -1]] = False
        return found

    @cached_property
    def _places(self) -> np.ndarray:
        """int64 [documents, 2]: the part that each is read from, and its number there."""
        found = np.empty((len(self), 2), dtype=np.int64)
        for part in reversed(range(len(self.parts))):  # of a document in two parts, the first is read
            numbers = self.documents_of_parts[part]
            found[numbers, 0], found[numbers, 1] = part, np.arange(len(numbers))
        return found

    @property
    def chats(self) -> list[dict[str, Any]]:
        """Of each source of chats: `traces` by effort (chats; mean, p50, p90, max tokens), `left_out`, `traces_unsaid` and
        `bodies`.

        `left_out` counts chats by reason, `bodies` by `role` or `role.channel`.
        """
        own = [self.about["chats"]] if "chats" in self.about else []
        return own + [found for part in self.parts for found in part.chats]

    @property
    def has_masks(self) -> bool:
        """Whether some tokens do not count."""
        return self.counted_tokens is not None or any(part.has_masks for part in self.parts)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [documents]: tokens of each."""
        return np.diff(self.offsets)

    @cached_property
    def targets_per_document(self) -> np.ndarray:
        """int64 [documents]: tokens that count as targets; of a plain text all but the first."""
        if not self.has_masks:
            return self.lengths - 1
        return np.array([self._targets(index) for index in range(len(self))], dtype=np.int64)

    def _targets(self, index: int) -> int:
        counted = self.counted(index)
        return int(self.lengths[index]) - 1 if counted is None else int(counted[1:].sum())

    @cached_property
    def measured_per_document(self) -> np.ndarray:
        """int64 [documents]: tokens that bits per byte measures; of a plain text all but the first and the last."""
        if self.body_numbers is None and not self.parts:
            return self.lengths - 2
        return np.array([self.measured(index).sum() for index in range(len(self))], dtype=np.int64)

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
        of_tokens = {name: _mapped(path / f"{name}.bin", dtype) for name, dtype in _OF_TOKENS.items() if "chats" in about}
    except (OSError, ValueError) as error:
        raise DataError(f"token store {path} cannot be read ({error}): remove the folder, it will be made again") from error
    num_tokens = {len(tokens), int(offsets[-1]), about["tokens"], *map(len, of_tokens.values())}
    if len(num_tokens) > 1 or not len(ids) == len(byte_counts) == len(offsets) - 1:
        raise DataError(f"token store {path} is damaged (files of different lengths): remove the folder, it will be made again")
    return TokenStore(
        path,
        tokens,
        offsets,
        byte_counts,
        ids,
        about["tokenizer"],
        counted_tokens=of_tokens.get("counted"),
        body_numbers=of_tokens.get("bodies"),
        about=about,
    )


_OF_TOKENS: dict[str, Any] = {"counted": np.bool_, "bodies": np.int32}


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r")


def joined(stores: Sequence[TokenStore]) -> TokenStore:
    """Several stores of one tokenizer as one. A document that is in two of them is one document."""
    assert len({store.tokenizer_fingerprint for store in stores}) == 1
    number: dict[str, int] = {}
    for store in stores:
        for name in store.ids:
            number.setdefault(name, len(number))
    documents = tuple(np.array([number[name] for name in store.ids], dtype=np.int64) for store in stores)
    lengths, sizes = (np.zeros(len(number), dtype=np.int64) for _ in range(2))
    for store, numbers in zip(reversed(stores), reversed(documents), strict=True):
        lengths[numbers], sizes[numbers] = store.lengths, store.bytes_per_document
    return TokenStore(
        stores[0].path,
        np.empty(0, dtype=np.uint32),
        np.concatenate([[0], np.cumsum(lengths)]),
        sizes,
        tuple(number),
        stores[0].tokenizer_fingerprint,
        about={"parts": [store.about for store in stores]},
        parts=tuple(stores),
        documents_of_parts=documents,
    )


@dataclass(frozen=True)
class Encoded:
    """A document in tokens; `counted` and `bodies` (of its tokens) are those of a chat."""

    id: str
    num_bytes: int
    tokens: np.ndarray
    counted: np.ndarray | None = None
    bodies: np.ndarray | None = None


def write_token_store(
    path: Path,
    documents: Iterable[Encoded],
    *,
    about: dict[str, Any],
    learnt: Callable[[], dict[str, Any]],
    max_tokens: int | None,
    title: str,
) -> None:
    """Write tokenised documents into a store at `path`, stopping after the document that reaches `max_tokens`.

    `learnt` gives what store.json says beyond `about`, known when the documents are read.
    """
    building = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    building.mkdir(parents=True, exist_ok=True)
    ids: list[bytes] = []
    byte_counts: list[int] = []
    lengths: list[int] = []
    total = 0
    try:
        with (
            (building / "tokens.bin").open("wb") as file,
            (building / "counted.bin").open("wb") as counted_file,
            (building / "bodies.bin").open("wb") as bodies_file,
            progress(f"tokenising {title} documents", total=max_tokens or 0) as advance,
        ):
            for found in documents:
                file.write(found.tokens.tobytes())
                if found.counted is not None and found.bodies is not None:
                    counted_file.write(found.counted.astype(np.bool_).tobytes())
                    bodies_file.write(found.bodies.astype(np.int32).tobytes())
                ids.append(found.id.encode("ascii"))
                byte_counts.append(found.num_bytes)
                lengths.append(len(found.tokens))
                total += len(found.tokens)
                advance(len(found.tokens), f"{len(ids):,} documents, {total:,} tokens")
                if max_tokens is not None and total >= max_tokens:
                    break
        more = learnt()
        if not ids:
            _refuse_nothing(title, more)
        for name in _OF_TOKENS if "chats" not in more else ():
            (building / f"{name}.bin").unlink()
        np.save(building / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        np.save(building / "bytes.npy", np.array(byte_counts, dtype=np.int64))
        np.save(building / "ids.npy", np.array(ids, dtype="S32"))
        (building / "store.json").write_text(json.dumps({**about, **more, "tokens": total}, indent=1), encoding="utf-8")
        put_in_place(building, path)
    except OSError as error:
        raise DataError(f"token store {path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _refuse_nothing(title: str, learnt: Mapping[str, Any]) -> None:
    left_out = learnt.get("chats", {}).get("left_out", {})
    why = "; ".join(f"{number:,} left out, since {reason}" for reason, number in left_out.items())
    key = f"data.{'heldout' if title == 'held-out' else 'train'}"
    raise DataError(f"no {title} documents: {key} holds no {f'chat that is kept ({why})' if why else 'text'}")
