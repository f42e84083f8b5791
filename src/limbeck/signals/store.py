"""The signal store: teachers' rows on disk, keyed by document and position.

Any sequence length, batch, order, packing or world size reads the same store: nothing in it knows of steps or ranks. Every row
read is checked against the tokens it is read for, so a store of other documents, another tokenizer or an offset by one is an
error and not noise. `signals/writer.py` writes a store; the folder's layout is in `signals/manifest.py` and
`signals/shards.py`.

A token is counted where it has a row: the first token of a document is given, not predicted.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import StoreError
from limbeck.paths import is_remote
from limbeck.signals.codec import DamagedRowsError, Decoded, Piece, decode, row_checks
from limbeck.signals.manifest import STORE_FILE, StoreIdentity, read_json, read_manifest
from limbeck.signals.places import fetch_manifest, open_place
from limbeck.signals.remote import damage_remedy, local_folder, looking_at
from limbeck.signals.rows import within_pieces
from limbeck.signals.serve import check_can_serve, narrow
from limbeck.signals.shards import map_shard, model_of, read_index, verify_shard
from limbeck.signals.types import ChunkRows, StoredRows
from limbeck.spec.signal import ChunksSignal, Signal, StoredSignal


@dataclass(frozen=True)
class _Place:
    """Where a document's rows lie."""

    shard: int
    num_rows: int
    offset: int
    num_bytes: int
    crc: int


class SignalStore:
    """A published store, open for reading. `bytes_read` counts the bytes of all rows handed out so far."""

    def __init__(self, path: Path) -> None:
        """See `open`."""
        self.path = path
        self._manifest = read_manifest(path)
        self.identity = StoreIdentity(**self._manifest["plan"]["identity"])
        self.signal: StoredSignal = self.identity.spec
        self.bytes_read = 0
        self._places = self._index_documents()
        self._maps: dict[int, np.ndarray] = {}
        self._intact: set[str] = set()  # documents whose bytes were compared with their checksum, on their first read

    @classmethod
    def open(cls, path: Path | str) -> "SignalStore":
        """The store in a folder or at a URL, whose shards are first brought to the user cache (`limbeck.signals.remote`).

        Raises `StoreError` where it is missing, incomplete, or a shard is missing or cut short.
        """
        return cls(local_folder(path))

    @property
    def tokens(self) -> int:
        """Tokens that have a row."""
        return int(self._manifest["statistics"]["tokens"])

    @property
    def distinct_ids(self) -> int:
        """Ids stored, over all rows."""
        return int(self._manifest["statistics"]["distinct_ids"])

    @property
    def mass_on_text(self) -> float | None:
        """What rows give the text's own tokens, in the mean over rows; None of chunks."""
        total = self._manifest["statistics"].get("mass_on_text")
        return None if total is None else float(total) / self.tokens

    @cached_property
    def bytes(self) -> int:
        """Everything on disk, the manifest included."""
        return (self.path / STORE_FILE).stat().st_size + sum(entry["bytes"] for entry in self._manifest["shards"])

    @property
    def document_ids(self) -> tuple[str, ...]:
        """The documents, in the order of the shards."""
        return tuple(self._places)

    def __contains__(self, document_id: str) -> bool:
        return document_id in self._places

    def missing_documents(self, document_ids: Iterable[str]) -> list[str]:
        """Those of the given documents that have no rows here."""
        return [document_id for document_id in document_ids if document_id not in self._places]

    def shard_documents(self) -> list[list[str]]:
        """The documents of each shard."""
        shards: list[list[str]] = [[] for _ in self._manifest["shards"]]
        for document_id, place in self._places.items():
            shards[place.shard].append(document_id)
        return shards

    def num_rows(self, document_id: str) -> int:
        """Rows of a document: one fewer than its tokens."""
        return self._place(document_id).num_rows

    def unmap(self) -> None:
        """Let go of the shards' memory maps; they are made again when rows are asked for."""
        self._maps.clear()

    def check_can_serve(
        self,
        signal: Signal,
        *,
        tokenizer: str,
        teacher_tokenizer: str | None = None,
        vocab_size: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises `StoreError`, saying what to change, where this store cannot give `signal` for these tokens."""
        check_can_serve(
            self.identity,
            signal,
            path=self.path,
            tokenizer=tokenizer,
            teacher_tokenizer=teacher_tokenizer,
            vocab_size=vocab_size,
            context=context,
        )

    def rows(
        self, document_id: str, start: int, stop: int, *, tokens: np.ndarray, signal: StoredSignal | None = None
    ) -> StoredRows:
        """Rows [start, stop) of one document; see `read`."""
        return self.read([(document_id, start, stop)], tokens=[tokens], signal=signal)

    def read(
        self,
        pieces: Sequence[tuple[str, int, int]],
        *,
        tokens: Sequence[np.ndarray],
        signal: StoredSignal | None = None,
    ) -> StoredRows:
        """Rows [start, stop) of each (document id, start, stop), one after another, padded to a common K.

        `tokens[i]` are the tokens at positions start..stop of piece i, both included: one more than its rows. `signal` is what
        is wanted of what the store holds (see `check_can_serve`); None: all of it. Chunks that begin before a piece are left
        out of it. Raises `StoreError` where a document is missing or a row was stored for other tokens.
        """
        decoded = self._decode(pieces)
        self._check_rows(pieces, tokens=tokens, checks=decoded.checks)
        rows = decoded.rows
        if isinstance(rows, ChunkRows):
            assert isinstance(self.signal, ChunksSignal)
            lengths = [stop - start for _, start, stop in pieces]
            rows = within_pieces(rows, lengths, keep_ids=self.signal.distribution == "index")
        return rows if signal is None else narrow(rows, signal)

    def whole(self, document_ids: Sequence[str]) -> Decoded:
        """All rows of some documents, one after another, with their checks: for tools that have no tokens to compare with."""
        return self._decode([(document_id, 0, self.num_rows(document_id)) for document_id in document_ids])

    def _decode(self, pieces: Sequence[tuple[str, int, int]]) -> Decoded:
        wanted = [self._piece(document_id, start, stop) for document_id, start, stop in pieces]
        try:
            decoded = decode(wanted, signal=self.signal, vocab_size=self.identity.vocab_size)
        except DamagedRowsError as error:
            raise StoreError(
                f"{self.path}: rows of {', '.join(dict.fromkeys(piece[0] for piece in pieces))} are damaged ({error}); "
                f"`limbeck cache verify {self.path}` names the file"
            ) from error
        self.bytes_read += decoded.num_bytes
        return decoded

    def _check_rows(self, pieces: Sequence[tuple[str, int, int]], *, tokens: Sequence[np.ndarray], checks: np.ndarray) -> None:
        lengths = np.array([stop - start for _, start, stop in pieces], dtype=np.int64)
        assert [len(piece) - 1 for piece in tokens] == lengths.tolist(), "tokens of a piece are one more than its rows"
        if not pieces:
            return
        # Between two pieces lies one pair of tokens that is no row.
        expected = np.delete(row_checks(np.concatenate(tokens)), np.cumsum(lengths[:-1] + 1) - 1)
        wrong = np.flatnonzero(checks != expected)
        if wrong.size:
            ends = np.cumsum(lengths)
            piece = int(np.searchsorted(ends, wrong[0], side="right"))
            document_id, start, _ = pieces[piece]
            position = start + int(wrong[0]) - int(ends[piece] - lengths[piece])
            raise StoreError(
                f"{self.path}: document {document_id}, position {position}: the row belongs to other tokens; tokenise as "
                "for the store, or score these documents with `limbeck cache write`"
            )

    def _piece(self, document_id: str, start: int, stop: int) -> Piece:
        place = self._place(document_id)
        if not 0 <= start <= stop <= place.num_rows:
            raise StoreError(
                f"{self.path}: document {document_id} has {place.num_rows} rows but [{start}, {stop}) were asked for; it was "
                "scored with other tokens, so score it again with `limbeck cache write`"
            )
        if place.shard not in self._maps:
            self._maps[place.shard] = map_shard(self._file(place))
        data = self._maps[place.shard][place.offset : place.offset + place.num_bytes]
        if document_id not in self._intact:
            if zlib.crc32(data.data) != place.crc:
                raise StoreError(
                    f"{self._file(place)}: the rows of document {document_id} changed since they were written; "
                    f"{damage_remedy(self.path, self._manifest)}"
                )
            self._intact.add(document_id)
        return Piece(data=data, model=model_of(self._maps[place.shard]), num_rows=place.num_rows, start=start, stop=stop)

    def _file(self, place: _Place) -> Path:
        return self.path / self._manifest["shards"][place.shard]["file"]

    def _place(self, document_id: str) -> _Place:
        place = self._places.get(document_id)
        if place is None:
            raise StoreError(f"{self.path} has no document {document_id}; score it with `limbeck cache write`")
        return place

    def _index_documents(self) -> dict[str, _Place]:
        places: dict[str, _Place] = {}
        for shard, entry in enumerate(self._manifest["shards"]):
            file = self.path / entry["file"]
            try:
                index = read_index(file)
                if index.checksum != entry["checksum"]:
                    raise StoreError(f"{file} is not the shard that {STORE_FILE} speaks of")
            except StoreError as error:
                raise StoreError(f"{error}; {damage_remedy(self.path, self._manifest)}") from error
            passed_over = frozenset(entry.get("without", ()))  # see `limbeck.signals.merge`
            for (document_id, num_rows, offset, num_bytes), crc in zip(index.places(), index.crcs, strict=True):
                if document_id not in passed_over:
                    places[document_id] = _Place(shard, num_rows, offset, num_bytes, crc)
        return places


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found; `problems` is empty where every byte is as it was written."""

    shards: int
    bytes: int
    problems: tuple[str, ...]

    @property
    def intact(self) -> bool:
        return not self.problems


def verify(path: Path | str, *, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Reads every byte of a store and decodes every row. `progress` is given (bytes done, bytes in all).

    Of a store at a URL the objects that lie there now are read, one after another, and no copy of them in the cache. Damage is
    reported, not raised; `StoreError` where there is no complete store.
    """
    try:
        manifest = _manifest_to_verify(path)
    except _DamagedManifestError as error:
        return VerifyReport(shards=0, bytes=0, problems=(str(error),))
    identity = StoreIdentity(**manifest["plan"]["identity"])
    total = sum(entry["bytes"] for entry in manifest["shards"])
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    problems: list[str] = []
    for entry in manifest["shards"]:
        with looking_at(path, entry) as file:
            found = verify_shard(
                file,
                checksum=entry["checksum"],
                signal=identity.spec,
                vocab_size=identity.vocab_size,
                progress=advance,
            )
        problems += [problem.replace(str(file), f"{path}/{entry['file']}") for problem in found]
    remedy = damage_remedy(path, manifest)
    return VerifyReport(len(manifest["shards"]), done, tuple(f"{problem}; {remedy}" for problem in problems))


class _DamagedManifestError(StoreError):
    """There is a `store.json`, and it is not what was written."""


def _manifest_to_verify(path: Path | str) -> dict[str, Any]:
    if is_remote(path):
        return fetch_manifest(*open_place(str(path)), url=str(path))[1]
    try:
        return read_json(Path(path) / STORE_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return read_manifest(Path(path))
    except StoreError as error:
        raise _DamagedManifestError(str(error)) from error
