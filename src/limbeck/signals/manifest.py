"""What a signal store is: its identity, what it can serve, and its small files.

A store is a folder:

* `shard-00000.rows`, ...: encoded rows of whole documents (`signals/shards.py`);
* `plan.json`, while it is being written: the identity and how documents are cut into shards, so that a killed write resumes;
* `store.json`, written last: identity, checksums, statistics. Without it the store is incomplete and readers refuse it.

The JSON files have one canonical form and carry a checksum of it, so any changed byte is found, white space included.
Every file is written beside its place, synced, and renamed: a reader sees it whole or not at all.
"""

import dataclasses
import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from limbeck.errors import StoreError
from limbeck.paths import write_atomically
from limbeck.spec.signal import HardSignal, SampledSignal, Signal, StoredSignal, TopKSignal

FORMAT = 1
STORE_FILE = "store.json"
PLAN_FILE = "plan.json"


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

    @property
    def spec(self) -> StoredSignal:
        """The signal as a spec."""
        return _STORED_SIGNAL.validate_python(self.signal)

    def digest(self) -> str:
        """16 hex digits."""
        return checksum_of(dataclasses.asdict(self))[:16]


_STORED_SIGNAL: TypeAdapter[StoredSignal] = TypeAdapter(StoredSignal)


def signal_identity(signal: StoredSignal) -> dict[str, Any]:
    """A signal without `live`, which says where rows come from and not what they are."""
    return signal.model_dump(exclude={"live"})


def check_can_serve(
    identity: StoreIdentity,
    signal: Signal,
    *,
    path: Path,
    tokenizer: str,
    vocab_size: int | None = None,
    context: Mapping[str, Any] | None = None,
) -> None:
    """Raises `StoreError`, saying what to change, where the store at `path` cannot give `signal`.

    A `topk` store gives any smaller k at its own temperature, and `hard`; a `sampled` store gives its own draws alone.
    `vocab_size` and `context` are compared where they are given.
    """
    held = identity.spec
    _check_tokens(identity, path=path, tokenizer=tokenizer, vocab_size=vocab_size)
    if context is not None and dict(context) != dict(identity.context):
        raise StoreError(
            f"the context asked for is {dict(context)} but {path} was scored with {dict(identity.context)}; ask for that "
            "one, or score again with `limbeck cache write`"
        )
    match signal, held:
        case (HardSignal(), TopKSignal() | HardSignal()):
            return
        case TopKSignal(), TopKSignal():
            _same("temperature", signal.temperature, held.temperature, path=path)
            if signal.k > held.k:
                raise StoreError(
                    f"signal.k={signal.k} exceeds the {held.k} stored in {path}; set signal.k={held.k} or score again with "
                    f"`limbeck cache write` and k={signal.k}"
                )
        case SampledSignal(), SampledSignal():
            for field in ("draws", "temperature", "seed"):
                _same(field, getattr(signal, field), getattr(held, field), path=path)
        case _:
            raise StoreError(
                f"signal.kind={signal.kind} is not what {path} holds ({held.kind}); set signal.kind={held.kind} or score "
                f"with `limbeck cache write` and another signal"
            )


def _check_tokens(identity: StoreIdentity, *, path: Path, tokenizer: str, vocab_size: int | None) -> None:
    if tokenizer != identity.tokenizer:
        raise StoreError(
            f"{path} speaks of tokens of tokenizer {identity.tokenizer}, not of {tokenizer}; give the student the teacher's "
            "tokenizer or score again with `limbeck cache write`"
        )
    if vocab_size not in (None, identity.vocab_size):
        raise StoreError(
            f"{path} holds ids of a vocabulary of {identity.vocab_size} but {vocab_size} was asked for; set the student's "
            f"vocabulary to {identity.vocab_size}"
        )


def _same(field: str, asked: float, held: float, *, path: Path) -> None:
    if asked != held:
        raise StoreError(
            f"signal.{field}={asked} is not the {held} stored in {path}; set signal.{field}={held} or score again with "
            f"`limbeck cache write` and {field}={asked}"
        )


def differences(held: Mapping[str, Any], asked: Mapping[str, Any], *, prefix: str = "") -> Iterator[str]:
    """`key: X in the store, Y asked for`, for every key whose values differ; nested keys are dotted."""
    for key in sorted(held.keys() | asked.keys()):
        one, other = held.get(key), asked.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differences(one, other, prefix=f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key}: {one!r} in the store, {other!r} asked for"


def canonical(values: Mapping[str, Any]) -> bytes:
    """The one JSON text of some values."""
    return json.dumps(values, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Values in their canonical form, with the checksum of that form."""
    write_file(path, [canonical({**values, "checksum": checksum_of(values)})])


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; `StoreError` naming the file where a byte of it is another or missing."""
    text = path.read_bytes()
    try:
        values = json.loads(text)
        checksum = values.pop("checksum")
        intact = checksum == checksum_of(values) and canonical({**values, "checksum": checksum}) == text
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise StoreError(f"{path} is damaged (its checksum does not hold); restore it, or write the store again")
    if values.get("format") != FORMAT:
        raise StoreError(
            f"{path} has format {values.get('format')} but this Limbeck reads {FORMAT}; use the Limbeck that wrote it"
        )
    return values


def checksum_of(values: Mapping[str, Any]) -> str:
    """32 hex digits, of the values' canonical form."""
    return hashlib.blake2b(canonical(values), digest_size=16).hexdigest()


def write_file(path: Path, chunks: Sequence[bytes]) -> None:
    """The file appears under its name with all its bytes on the disk, or not at all; `StoreError` where the disk is full."""
    try:
        write_atomically(path, chunks)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
        raise StoreError(
            f"the disk is full: {path} needs {sum(map(len, chunks)):,} bytes and {shutil.disk_usage(path.parent).free:,} are "
            "free; finished shards are kept, so free some space and run `limbeck cache write` again to resume"
        ) from error


def read_manifest(path: Path) -> dict[str, Any]:
    """A published store's `store.json`; `StoreError` where there is none, or the store is not finished."""
    if (path / STORE_FILE).exists():
        return read_json(path / STORE_FILE)
    if (path / PLAN_FILE).exists():
        num_shards = read_json(path / PLAN_FILE)["num_shards"]
        finished = len(list(path.glob("shard-*.rows")))
        raise StoreError(
            f"{path} is incomplete ({finished} of {num_shards} shards); `limbeck cache write` with its recipe resumes it"
        )
    raise StoreError(f"{path} is not a signal store; `limbeck cache write` with a recipe makes one")


def info(path: Path) -> dict[str, Any]:
    """What a store is and holds, as plain JSON, from its manifest alone; `tail_mass` and `entropy_nats` are means over rows."""
    manifest = read_manifest(path)
    identity = StoreIdentity(**manifest["plan"]["identity"])
    statistics = manifest["statistics"]
    tokens, distinct_ids = int(statistics["tokens"]), int(statistics["distinct_ids"])
    num_bytes = (path / STORE_FILE).stat().st_size + sum(entry["bytes"] for entry in manifest["shards"])
    means = {name: statistics[name] / tokens for name in ("tail_mass", "entropy_nats") if name in statistics}
    return {
        "kind": identity.spec.kind,
        "documents": statistics["documents"],
        "tokens": tokens,
        "bytes": num_bytes,
        "bytes_per_token": num_bytes / tokens,
        "distinct_ids_per_token": distinct_ids / tokens,
        "bytes_per_distinct_id": num_bytes / distinct_ids,
        **means,
        "scoring_seconds": statistics["scoring_seconds"],
        "scoring_tokens_per_second": tokens / max(statistics["scoring_seconds"], 1e-9),
        "shards": len(manifest["shards"]),
        "identity": dataclasses.asdict(identity),
        "identity_digest": identity.digest(),
        "path": str(path),
    }


def is_published(path: Path) -> bool:
    """Whether a complete store lies there."""
    return (path / STORE_FILE).is_file()
