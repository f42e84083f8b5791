"""`limbeck cache write|info|verify`: what is said of a store is what lies on the disk, and one changed byte is found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STORE = "out/stores/{teacher}-topk-20"


@pytest.fixture
def store(limbeck: Callable[..., Any], recipe_file: Path, teacher_folder: Path, tmp_path: Path) -> Path:
    assert limbeck("cache", "write", recipe_file).code == 0
    return tmp_path / STORE.format(teacher=teacher_folder.name.lower())


def test_info_says_what_lies_on_the_disk(
    limbeck: Callable[..., Any], store: Path, recipe_file: Path, texts_folder: Path
) -> None:
    facts = json.loads(limbeck("cache", "info", store, "--json").out)
    assert facts["bytes"] == sum(path.stat().st_size for path in store.iterdir())
    assert facts["kind"] == "topk"
    assert facts["documents"] == len(list(texts_folder.glob("train/*.txt")))
    assert facts["bytes_per_token"] == pytest.approx(facts["bytes"] / facts["tokens"])
    assert facts["distinct_ids_per_token"] == 20
    assert facts["identity"]["signal"] == {"kind": "topk", "k": 20, "temperature": 1.0}
    assert facts["identity"]["context"] == {"window": 48, "overlap": 16}
    assert facts["identity"]["vocab_size"] == 300
    assert facts["path"] == str(store)


def test_a_token_is_counted_where_it_is_predicted(
    limbeck: Callable[..., Any], store: Path, texts_folder: Path, teacher_folder: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    texts = [path.read_text(encoding="utf-8") for path in texts_folder.glob("train/*.txt")]
    # <s> text </s>: all but the first token are predicted.
    expected = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts)
    assert json.loads(limbeck("cache", "info", store, "--json").out)["tokens"] == expected


def test_writing_again_scores_nothing(
    limbeck: Callable[..., Any], store: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("everything is scored already")

    monkeypatch.setattr("limbeck.teachers.cache.score_documents", refuse)
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    again = limbeck("cache", "write", recipe_file, "--json")
    assert again.code == 0
    assert json.loads(again.out)["path"] == str(store)
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before


def test_what_is_remembered_of_a_store_is_of_the_one_that_is_there(
    limbeck: Callable[..., Any], store: Path, recipe_file: Path
) -> None:
    for path in [*store.glob("*.rows"), store / "store.json"]:
        path.unlink()
    written = json.loads(limbeck("cache", "write", recipe_file, f"store={store}", "signal.k=7", "--json").out)
    assert written["identity"]["signal"]["k"] == 7
    assert written["distinct_ids_per_token"] == 7


def test_an_intact_store_is_verified(limbeck: Callable[..., Any], store: Path) -> None:
    outcome = limbeck("cache", "verify", store, "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert report["intact"]
    assert report["bytes"] == sum(path.stat().st_size for path in store.glob("*.rows"))
    assert report["shards"] == len(list(store.glob("*.rows")))


@pytest.mark.parametrize("place", [0, 0.3, 0.9, -1])
def test_one_flipped_byte_is_found_and_its_file_named(limbeck: Callable[..., Any], store: Path, place: float) -> None:
    shard = store / "shard-00000.rows"
    content = bytearray(shard.read_bytes())
    content[int(place * len(content)) if place >= 0 else -1] ^= 0x10
    shard.write_bytes(content)
    outcome = limbeck("cache", "verify", store)
    assert outcome.code == 1
    assert outcome.complaint.count(str(shard)) == 1  # however many things are wrong with it


@pytest.mark.parametrize("name", ["shard-00000.rows", "store.json"])
def test_a_truncated_file_is_found_and_named(limbeck: Callable[..., Any], store: Path, name: str) -> None:
    path = store / name
    path.write_bytes(path.read_bytes()[:-100])
    outcome = limbeck("cache", "verify", store)
    assert outcome.code == 1
    assert str(path) in outcome.complaint


def test_a_folder_that_is_no_store_is_refused(limbeck: Callable[..., Any], tmp_path: Path) -> None:
    for verb in ("info", "verify"):
        outcome = limbeck("cache", verb, tmp_path / "absent")
        assert outcome.code == 1
        assert "absent is not a signal store" in outcome.complaint


def test_a_recipe_that_reads_no_store_writes_none(limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> None:
    for override in ("objective.kind=ce", "signal.live=true", "signal.kind=dense"):
        outcome = limbeck("cache", "write", recipe_file, override)
        assert outcome.code == 2
        assert "no signal store is read" in outcome.complaint
    assert not (tmp_path / "out").exists()
