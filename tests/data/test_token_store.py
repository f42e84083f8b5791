"""The token store: what is in it, exact bytes, held-out documents kept apart, damage found."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data.prepare import prepare, prepare_texts
from limbeck.data.token_store import open_token_store
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import DataError
from limbeck.spec.data import Data, FileTexts


@pytest.fixture
def data(values: dict[str, Any]) -> Data:
    return Data.model_validate(values["data"])


def test_tokens_decode_to_the_texts_and_bytes_are_those_of_the_files(
    data: Data, teacher_folder: Path, texts_folder: Path
) -> None:
    tokenizer = load_tokenizer(str(teacher_folder))
    store, _ = prepare(data, tokenizer)
    files = {path.read_text(encoding="utf-8"): path.stat().st_size for path in (texts_folder / "train").iterdir()}
    assert len(store) == len(files)
    for index in range(len(store)):
        start, *ids, end = store.document(index).tolist()
        text = tokenizer.backend.decode(ids)
        assert (start, end) == (0, 1)  # <s> and </s>
        assert store.bytes_per_document[index] == files[text]


def test_texts_are_tokenised_once_and_again_when_a_file_changes(tmp_path: Path, teacher_folder: Path) -> None:
    tokenizer = load_tokenizer(str(teacher_folder))
    (tmp_path / "a.txt").write_text("the people", encoding="utf-8")
    texts = FileTexts(paths=(str(tmp_path / "*.txt"),))
    first = prepare_texts(texts, tokenizer, title="training")
    assert prepare_texts(texts, tokenizer, title="training").path == first.path
    (tmp_path / "a.txt").write_text("the people and the law", encoding="utf-8")
    again = prepare_texts(texts, tokenizer, title="training")
    assert again.path != first.path
    assert again.ids != first.ids


def test_plain_texts_are_kept_under_the_name_that_they_always_had(tmp_path: Path, teacher_folder: Path) -> None:
    """So what was tokenised before chats could be read is not tokenised again."""
    file = tmp_path / "a.txt"
    file.write_text("the people", encoding="utf-8")
    texts, tokenizer = FileTexts(paths=(str(file),)), load_tokenizer(str(teacher_folder))
    described = {
        "format": 1,
        "tokenizer": tokenizer.fingerprint,
        "texts": {"kind": "files", "paths": [str(file)], "field": "text", "split_bytes": None, "sample_tokens": None},
        "source": {"files": [[str(file), 10, file.stat().st_mtime_ns]]},
        "excluded": None,
    }
    name = hashlib.sha256(json.dumps(described, sort_keys=True).encode("utf-8")).hexdigest()[:20]
    store = prepare_texts(texts, tokenizer, title="training", loss_on=("assistant",))
    assert store.path.name == name
    assert sorted(path.name for path in store.path.iterdir()) == [
        "bytes.npy",
        "ids.npy",
        "offsets.npy",
        "store.json",
        "tokens.bin",
    ]
    assert (store.counted(0), store.bodies(0), store.chats) == (None, None, [])
    assert store.measured(0).tolist() == [False] + [True] * (store.lengths[0] - 2) + [False]


def test_a_heldout_document_never_trains(tmp_path: Path, teacher_folder: Path) -> None:
    for part, names in (("train", "abc"), ("heldout", "cd")):
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / f"{name}.txt").write_text(f"the {name} of the people", encoding="utf-8")
    data = Data.model_validate(
        {part: {"kind": "files", "paths": [f"{tmp_path}/{part}/*.txt"]} for part in ("train", "heldout")}
    )
    train, heldout = prepare(data, load_tokenizer(str(teacher_folder)))
    assert len(train) == len(heldout) == 2
    assert not set(train.ids) & set(heldout.ids)


def test_a_sample_takes_documents_in_the_order_of_their_ids(data: Data, teacher_folder: Path) -> None:
    tokenizer = load_tokenizer(str(teacher_folder))
    everything = prepare_texts(data.train, tokenizer, title="training")
    sample = prepare_texts(data.train.model_copy(update={"sample_tokens": 200}), tokenizer, title="training")
    in_order = sorted(everything.ids)
    assert list(sample.ids) == in_order[: len(sample)]
    assert sample.lengths.sum() >= 200 > sample.lengths[:-1].sum()


def test_an_empty_corpus_is_an_error_and_leaves_nothing(tmp_path: Path, teacher_folder: Path) -> None:
    (tmp_path / "empty.txt").write_text("  \n", encoding="utf-8")
    texts = FileTexts(paths=(str(tmp_path / "*.txt"),))
    for _ in range(2):
        with pytest.raises(DataError, match=r"no training documents: data\.train holds no text"):
            prepare_texts(texts, load_tokenizer(str(teacher_folder)), title="training")


def test_a_cut_store_is_found(data: Data, teacher_folder: Path) -> None:
    store, _ = prepare(data, load_tokenizer(str(teacher_folder)))
    tokens = np.array(store.tokens)
    (store.path / "tokens.bin").write_bytes(tokens[:-1].tobytes())
    with pytest.raises(DataError, match="damaged"):
        open_token_store(store.path)


def test_another_tokenizer_has_another_fingerprint(tmp_path: Path, teacher_folder: Path) -> None:
    from tiny_world import make_tokenizer

    make_tokenizer(tmp_path / "other", vocab_size=290)
    one, same = load_tokenizer(str(teacher_folder)), load_tokenizer(str(teacher_folder))
    assert one.fingerprint == same.fingerprint != load_tokenizer(str(tmp_path / "other")).fingerprint


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer can be loaded"):
        load_tokenizer(str(tmp_path))
