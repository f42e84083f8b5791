"""`limbeck cache …`: what is said of a store is what lies on the disk, and one changed byte is found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.paths import cache_folder

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
    assert facts["identity"]["signal"] == {
        "kind": "topk",
        "k": 20,
        "temperature": 1.0,
        "values": "float16",
    }
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


@pytest.fixture
def sampled(limbeck: Callable[..., Any], recipe_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "sampled"
    assert limbeck("cache", "write", recipe_file, f"store={path}", "signal={kind: sampled, draws: 15}").code == 0
    return path


def test_diff_says_how_far_and_where(
    limbeck: Callable[..., Any], store: Path, recipe_file: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    hot = tmp_path / "hot"
    assert limbeck("cache", "write", recipe_file, f"store={hot}", "signal.temperature=1.3").code == 0
    found = json.loads(limbeck("cache", "diff", store, hot, "--worst", "3", "--json").out)
    assert found["differs"] == ["signal.temperature: 1.0 in A, 1.3 in B"]
    assert found["kl"]["low"] < found["kl"]["value"] < found["kl"]["high"]
    assert 0 < found["median"] < found["p99"] <= found["maximum"] == found["worst"][0]["kl_nats"]
    assert found["top1_flips"]["value"] == 0  # a temperature keeps the order
    assert found["entropy_shift"]["value"] > 0
    assert len(found["worst"]) == 3
    facts = json.loads(limbeck("cache", "info", store, "--json").out)
    assert (found["positions"], found["documents"]) == (facts["tokens"], facts["documents"])
    lines = limbeck("cache", "diff", store, hot, "--tokenizer", teacher_folder).out
    worst = found["worst"][0]
    assert f"KL(A || B): {found['kl']['value']:.4g} [" in lines
    assert worst["document"] in lines
    assert "signal.temperature: 1.0 in A, 1.3 in B" in lines


def test_diff_refuses_in_one_line(limbeck: Callable[..., Any], store: Path, sampled: Path, tmp_path: Path) -> None:
    assert "name it first" in limbeck("cache", "diff", store, sampled).complaint
    assert limbeck("cache", "diff", sampled, store).code == 0
    assert "absent is not a signal store" in limbeck("cache", "diff", store, tmp_path / "absent").complaint
    assert "no tokenizer can be loaded" in limbeck("cache", "diff", store, store, "--tokenizer", tmp_path).complaint


def test_fidelity_adds_up(limbeck: Callable[..., Any], store: Path, sampled: Path) -> None:
    found = json.loads(limbeck("cache", "fidelity", store, "--json").out)
    lines = {source["name"]: source for source in found["sources"]}
    assert list(lines) == ["truncation", "sampling", "values", "teacher", "temperature"]
    assert lines["teacher"]["nats"] is None
    assert found["dominant"] == "truncation"
    assert found["total_nats"] == pytest.approx(sum(source["nats"] or 0 for source in found["sources"]))
    shown = limbeck("cache", "fidelity", store, "--reference", store).out.splitlines()
    assert shown[0].split() == ["source", "nats/token", "nature", "how", "it", "is", "known"]
    assert f"{lines['truncation']['nats']:.2e}" in shown[2]
    assert "0.00e+00" in next(line for line in shown if line.startswith("teacher"))
    assert "truncation dominates" in "\n".join(shown)
    assert json.loads(limbeck("cache", "fidelity", sampled, "--json").out)["dominant"] == "sampling"


def test_extend_and_merge_hold_every_document(
    limbeck: Callable[..., Any], recipe_file: Path, texts_folder: Path, tmp_path: Path
) -> None:
    def write(name: str, pattern: str) -> Path:
        paths = f"data.train.paths=['{texts_folder}/train/{pattern}']"
        assert limbeck("cache", "write", recipe_file, f"store={tmp_path / name}", paths).code == 0
        return tmp_path / name

    one, two = write("one", "[0-3].txt"), write("two", "[3-7].txt")
    merged = json.loads(limbeck("cache", "merge", one, two, "-o", tmp_path / "both", "--keep-first", "--json").out)
    assert (merged["documents"], merged["duplicates"]) == (8, 1)
    added = json.loads(limbeck("cache", "extend", one, recipe_file, "--json").out)
    assert (added["added"], added["documents"]) == (True, 8)
    for path in (one, tmp_path / "both"):
        assert limbeck("cache", "verify", path).code == 0
        assert json.loads(limbeck("cache", "info", path, "--json").out)["documents"] == 8
    assert json.loads(limbeck("cache", "extend", one, recipe_file, "--json").out)["added"] is False
    assert limbeck("train", recipe_file, f"store={one}").code == 0
    assert "signal.k: 20 in the store, 9 asked for" in limbeck("cache", "extend", one, recipe_file, "signal.k=9").complaint


def test_stores_at_urls_are_read_and_published(limbeck: Callable[..., Any], recipe_file: Path, store: Path) -> None:
    import fsspec

    filesystem = fsspec.filesystem("memory")
    filesystem.rm("/published", recursive=True) if filesystem.exists("/published") else None
    url = "memory://published/store"
    facts = json.loads(limbeck("cache", "write", recipe_file, f"store={url}", "--json").out)
    assert facts["path"] == url
    assert not list((cache_folder() / "signals" / "outgoing").iterdir())
    again = limbeck("cache", "write", recipe_file, f"store={url}", "--json")
    assert (again.code, json.loads(again.out)) == (0, facts)
    assert (
        "signal.k: 20 in the store, 9 asked for"
        in limbeck("cache", "write", recipe_file, f"store={url}", "signal.k=9").complaint
    )
    assert sorted(Path(name).name for name in filesystem.ls("/published/store", detail=False)) == sorted(
        path.name for path in store.iterdir()
    )
    shown = json.loads(limbeck("cache", "info", url, "--json").out)
    assert {**shown, "scoring_seconds": 0, "scoring_tokens_per_second": 0} == {
        **facts,
        "scoring_seconds": 0,
        "scoring_tokens_per_second": 0,
    }
    assert limbeck("cache", "verify", url).code == 0
    assert json.loads(limbeck("cache", "diff", store, url, "--json").out)["kl"]["value"] == 0
    assert "cannot be extended in place" in limbeck("cache", "extend", url, recipe_file).complaint
    assert json.loads(limbeck("cache", "merge", store, "-o", "memory://published/copy", "--json").out)["documents"] == 8
    assert limbeck("cache", "verify", "memory://published/copy").code == 0
    assert limbeck("cache", "merge", store, "-o", "memory://published/copy").code == 0
    filesystem.pipe_file("/published/copy/shard-00000.rows", b"something else")
    assert (
        "memory://published/copy/shard-00000.rows is damaged" in limbeck("cache", "verify", "memory://published/copy").complaint
    )
    assert limbeck("cache", "verify", url).code == 0
    assert "memory://absent is not a signal store" in limbeck("cache", "info", "memory://absent").complaint


def test_extend_draws_more(limbeck: Callable[..., Any], recipe_file: Path, sampled: Path) -> None:
    more = "signal={kind: sampled, draws: 40}"
    added = json.loads(limbeck("cache", "extend", sampled, recipe_file, more, "--json").out)
    assert (added["added"], added["documents"]) == (True, 8)
    assert json.loads(limbeck("cache", "info", sampled, "--json").out)["identity"]["signal"]["draws"] == 40
    assert limbeck("cache", "verify", sampled).code == 0
    assert "40 in the store, 15 asked" in limbeck("cache", "extend", sampled, recipe_file, more.replace("40", "15")).complaint
