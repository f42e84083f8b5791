"""What a signal store is: its identity and its small files.

A store is a folder:

* `shard-00000.rows`, ...: encoded rows of whole documents (`signals/shards.py`);
* `plan.json`, while it is being written: the identity and how documents are cut into shards, so that a killed write resumes;
* `store.json`, written last: identity, checksums, statistics. Without it the store is incomplete and readers refuse it.

The JSON files have one canonical form and carry a checksum of it, so any changed byte is found, white space included.
Every file is written beside its place, synced, and renamed: a reader sees it whole or not at all. Where several writers may
put the same file in place, it is linked and not renamed, so the first wins.
"""

import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from limbeck.errors import StoreError
from limbeck.paths import sync
from limbeck.spec.signal import StoredSignal

FORMAT = 3
STORE_FILE = "store.json"
PLAN_FILE = "plan.json"
_SHARD_FILE = re.compile(r"shard-[0-9]{5,}\.rows")
_CHECKSUM = re.compile(r"[0-9a-f]{32}")
_NO_LINKS = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EXDEV, errno.EMLINK)
"""What file systems without hard links say, or those that have no more of them."""


@dataclass(frozen=True)
class StoreIdentity:
    """All that the rows depend on. Two stores of equal identity hold the same rows. Values are plain JSON."""

    teacher: Mapping[str, Any]
    """Name, fingerprint of the weights, revision, quantisation, dtype."""
    tokenizer: str
    """The tokenizer's fingerprint."""
    documents: str
    """A digest of the documents and their tokens."""
    context: Mapping[str, Any]
    """What the teacher sees before a position: window and overlap, in tokens."""
    signal: Mapping[str, Any]
    """The signal, as `signal_identity` gives it."""
    vocab_size: int
    """Of the teacher; where it has another tokenizer than the documents, of the larger of the two."""
    teacher_tokenizer: str | None = None
    """Of a signal of chunks, the fingerprint of the teacher's tokenizer, while `tokenizer` is the students'."""
    teacher_template: str | None = None
    """Of chunks of chats, the digest of the chat template by which the teacher read them."""

    def as_json(self) -> dict[str, Any]:
        """All of it, but for what is said of chunks where there are none: stores of format 3 may have been without."""
        values = dataclasses.asdict(self)
        return {key: value for key, value in values.items() if value is not None or not key.startswith("teacher_")}

    @property
    def spec(self) -> StoredSignal:
        """The signal as a spec."""
        return _STORED_SIGNAL.validate_python(self.signal)

    def digest(self) -> str:
        """16 hex digits."""
        return checksum_of(self.as_json())[:16]


_STORED_SIGNAL: TypeAdapter[StoredSignal] = TypeAdapter(StoredSignal)


def signal_identity(signal: StoredSignal) -> dict[str, Any]:
    """A signal without `live`, which says where rows come from and not what they are."""
    return signal.model_dump(exclude={"live"})


def differences(
    held: Mapping[str, Any],
    asked: Mapping[str, Any],
    *,
    words: tuple[str, str] = ("in the store", "asked for"),
    prefix: str = "",
) -> Iterator[str]:
    """`key: X in the store, Y asked for`, for every key whose values differ; nested keys are dotted."""
    for key in sorted(held.keys() | asked.keys()):
        one, other = held.get(key), asked.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differences(one, other, words=words, prefix=f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key}: {one!r} {words[0]}, {other!r} {words[1]}"


def canonical(values: Mapping[str, Any]) -> bytes:
    """The one JSON text of some values."""
    return json.dumps(values, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_json(path: Path, values: Mapping[str, Any], *, keep: Callable[[Path], bool] | None = None) -> None:
    """Values in their canonical form, with the checksum of that form; `keep` as for `put`."""
    write_file(path, [canonical({**values, "checksum": checksum_of(values)})], keep=keep)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; `StoreError` naming the file where a byte of it is another or missing.

    `FileNotFoundError` or `NotADirectoryError` where there is none.
    """
    remedy = "restore it, or delete it and run the command that wrote it (`limbeck cache write`) again: it keeps its own shards"
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    try:
        values = json.loads(text)
        checksum = values.pop("checksum")
        intact = checksum == checksum_of(values) and canonical({**values, "checksum": checksum}) == text
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise StoreError(f"{path} is damaged (its checksum does not hold); {remedy}")
    if values.get("format") != FORMAT:
        raise StoreError(
            f"{path} has format {values.get('format')} but this Limbeck reads {FORMAT}; use the Limbeck that wrote it, or "
            "delete the store and score it again with `limbeck cache write`"
        )
    _require_plain_names(path, values)
    return values


def _require_plain_names(path: Path, values: Mapping[str, Any]) -> None:
    """A checksum can be made for anything: what a manifest names becomes part of paths, so it has to be a name and no path."""
    for entry in values.get("shards", ()):
        names = (entry.get("file"), entry.get("checksum")) if isinstance(entry, dict) else (entry, None)
        if not (_SHARD_FILE.fullmatch(str(names[0])) and _CHECKSUM.fullmatch(str(names[1]))):
            raise StoreError(f"{path} names a shard {names[0]!r} ({names[1]!r}), as no Limbeck does; do not use this store")


def checksum_of(values: Mapping[str, Any]) -> str:
    """32 hex digits, of the values' canonical form."""
    return hashlib.blake2b(canonical(values), digest_size=16).hexdigest()


def write_file(path: Path, chunks: Sequence[bytes], *, keep: Callable[[Path], bool] | None = None) -> None:
    """`put` of these bytes."""

    def write(temporary: Path) -> None:
        with temporary.open("xb") as file:
            file.writelines(chunks)

    put(path, write, num_bytes=sum(map(len, chunks)), keep=keep)


def put(path: Path, make: Callable[[Path], object], *, num_bytes: int, keep: Callable[[Path], bool] | None = None) -> None:
    """The file that `make` makes appears under its name with all its bytes on the disk, or not at all.

    A file that is there already is replaced, unless `keep` says that it is as good: then the first of several writers wins.
    Raises `StoreError` where the disk is full or refuses.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        make(temporary)
        sync(temporary)
        if keep is None or not _first_stays(temporary, path, keep=keep):
            os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
        raise StoreError(
            f"the disk is full: {path} needs {num_bytes:,} bytes and {shutil.disk_usage(path.parent).free:,} are free; what is "
            "finished is kept, so free some space and run the same command again to resume"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _first_stays(temporary: Path, path: Path, *, keep: Callable[[Path], bool]) -> bool:
    """Whether a file that may stay now lies at `path`: ours if there was none, which a link can tell and a rename cannot."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return keep(path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return path.exists() and keep(path)
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that is never changed in place, or a copy of it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def discard(folder: Path) -> None:
    """Remove a store. A kill halfway leaves shards without a manifest, which the next writer takes or replaces."""
    for name in (STORE_FILE, PLAN_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """A published store's `store.json`; `StoreError` where there is none, or the store is not finished."""
    try:
        return read_json(path / STORE_FILE)
    except (FileNotFoundError, NotADirectoryError):
        pass
    try:
        num_shards = read_json(path / PLAN_FILE)["num_shards"]
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path} is not a signal store; `limbeck cache write` with a recipe makes one") from None
    finished = len(list(path.glob("shard-*.rows")))
    raise StoreError(
        f"{path} is incomplete ({finished} of {num_shards} shards); `limbeck cache write` with its recipe resumes it"
    )


def info(path: Path) -> dict[str, Any]:
    """What a store is and holds, as plain JSON, from its manifest alone.

    `mass_on_text` (what rows give the text's own tokens), `tail_mass` and `entropy_nats` are means over rows;
    `chunk_log_prob_nats` is one over chunks.
    """
    manifest = read_manifest(path)
    identity = StoreIdentity(**manifest["plan"]["identity"])
    statistics = manifest["statistics"]
    tokens, distinct_ids = int(statistics["tokens"]), int(statistics["distinct_ids"])
    num_bytes = (path / STORE_FILE).stat().st_size + sum(entry["bytes"] for entry in manifest["shards"])
    means = {name: statistics[name] / tokens for name in ("mass_on_text", "tail_mass", "entropy_nats") if name in statistics}
    if "chunks" in statistics:
        means["chunks_per_token"] = statistics["chunks"] / tokens
        means["chunk_log_prob_nats"] = statistics["chunk_log_prob_nats"] / max(statistics["chunks"], 1)
    return {
        "kind": identity.spec.kind,
        "documents": statistics["documents"],
        "tokens": tokens,
        "bytes": num_bytes,
        "bytes_per_token": num_bytes / tokens,
        "distinct_ids_per_token": distinct_ids / tokens,
        "bytes_per_distinct_id": num_bytes / distinct_ids if distinct_ids else None,
        **means,
        "scoring_seconds": statistics["scoring_seconds"],
        "scoring_tokens_per_second": tokens / max(statistics["scoring_seconds"], 1e-9),
        "shards": len(manifest["shards"]),
        "identity": identity.as_json(),
        "identity_digest": identity.digest(),
        "path": str(path),
    }


def is_published(path: Path) -> bool:
    """Whether a complete store lies there."""
    return (path / STORE_FILE).is_file()
