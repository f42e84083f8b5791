"""The whole command: what is drawn is the teacher's, what is killed repeats itself, what is left out says why.

Shapes: T positions, V vocabulary.
"""

import errno
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from teach_world import OVER, TEMPLATE, chats, lines_of, make_chatty, spec_of, write_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.data.texts import read_documents
from limbeck.errors import DataError, LimbeckError, SpecError
from limbeck.spec.data import FileTexts
from limbeck.teach.asks import read_prompts
from limbeck.teach.draws import DrawFile, read_draws
from limbeck.teach.text import read_log_probs, teach_text
from limbeck.teach.writer import TextTeacher

EFFORTS = {"low": {"max_new_tokens": 5}, "high": {"system": "Think."}}


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return write_lines(tmp_path / "prompts.jsonl", chats(7))


def log_probs_after(folder: Path) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    """Of a text and tokens after it: the log-softmax [T, V] of the model, the sequence read whole and alone."""
    model, backend = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def found(before: str, tokens: tuple[int, ...]) -> torch.Tensor:
        asked = backend(before, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return model(torch.tensor([[*asked, *tokens]])).logits[0, len(asked) - 1 : -1].log_softmax(-1)

    return found


@pytest.mark.parametrize("sharpened", [{}, {"temperature": 0.6, "top_p": 0.9}], ids=["whole", "sharpened"])
def test_log_probs_are_the_teachers_own_at_every_effort(
    sharpened: dict[str, Any], chatty: Path, prompts: str, tmp_path: Path
) -> None:
    """And the chats are what was asked, without an effort's system text, with what was drawn."""
    summary = teach_text(spec_of(chatty, prompts, tmp_path / "out", efforts=EFFORTS, samples=2, duplicates=None, **sharpened))
    records, log_probs = lines_of(tmp_path / "out" / "completions.jsonl"), dict(read_log_probs(tmp_path / "out"))
    backend, of_model = AutoTokenizer.from_pretrained(chatty), log_probs_after(chatty)
    assert summary["kept"] == len(records) == len(log_probs) > 15
    for record in records:
        question, answer = record["messages"]
        system = {"low": "", "high": "<|system|>Think.<|over|>"}[record["reasoning_effort"]]
        before = f"<s>{record['reasoning_effort']} {system}<|user|>{question['content']}<|over|><|assistant|>"
        found = log_probs[record["id"]]
        expected_T = of_model(before, found.tokens).gather(1, torch.tensor(found.tokens)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(found.log_probs), expected_T, rtol=0, atol=1e-4)
        assert record["log_prob_nats"] == pytest.approx(float(expected_T.sum()), abs=1e-3)
        stopped = record["outcome"] == "stopped"
        assert stopped == (found.tokens[-1] in (1, OVER))
        assert backend.decode(found.tokens[: len(found.tokens) - stopped]) == answer["content"]
        assert record["tokens"] == len(found.tokens) <= {"low": 5, "high": 12}[record["reasoning_effort"]]
    for effort, told in summary["efforts"].items():
        own = [record for record in records if record["reasoning_effort"] == effort]
        tokens = [record["tokens"] for record in own]
        assert (told["drawn"], told["kept"], told["tokens"]) == (14, len(own), sum(tokens))
        assert told["stopped"] >= sum(record["outcome"] == "stopped" for record in own)
        assert told["length"]["median"] == statistics.median(tokens) and told["length"]["most"] == max(tokens)
        assert told["log_prob_nats_per_token"] == pytest.approx(sum(record["log_prob_nats"] for record in own) / sum(tokens))
    assert set(summary["efforts"]) == {"low", "high"}
    assert {record["outcome"] for record in records} == {"stopped", "truncated"}


def test_a_killed_command_goes_on_to_the_same_result(chatty: Path, prompts: str, tmp_path: Path) -> None:
    """Killed before the first byte, within a line, between two, and with the result half written."""

    def result(folder: Path) -> list[str]:
        teach_text(spec_of(chatty, prompts, folder, samples=2))
        return [(folder / name).read_text() for name in ("completions.jsonl", "dropped.jsonl")]

    whole = result(tmp_path / "whole")
    drawn = (tmp_path / "whole" / "drawn.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(drawn) if byte == 10]
    assert len(ends) == 4  # what was asked, and three groups
    for cut in (0, 10, ends[0], ends[1] - 1, ends[1] + 30, ends[3]):
        folder = tmp_path / f"cut {cut}"
        folder.mkdir()
        (folder / "drawn.jsonl").write_bytes(drawn[:cut])
        (folder / "completions.jsonl.partial").write_text("{")
        assert result(folder) == whole
        groups = [each.group for each in read_draws(folder / "drawn.jsonl")]
        assert sorted(groups) == [0, 1, 2]


def test_a_full_disk_is_continued(chatty: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, sync = spec_of(chatty, prompts, tmp_path / "out"), os.fsync

    def full(descriptor: int) -> None:
        path = tmp_path / "out" / "drawn.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") > 1:
            os.ftruncate(descriptor, path.stat().st_size - 20)
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        teach_text(spec)
    monkeypatch.undo()
    assert teach_text(spec)["drawn"] == 7


def test_what_was_drawn_is_chosen_from_anew_and_never_mixed(
    chatty: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = teach_text(spec_of(chatty, prompts, out))
    before = lines_of(out / "completions.jsonl")
    with pytest.raises(SpecError, match=r"drawn\.jsonl was drawn with seed=0, not with seed=1: name another output"):
        teach_text(spec_of(chatty, prompts, out, seed=1))
    monkeypatch.setattr(TextTeacher, "draw", lambda *_, **__: pytest.fail("drawn again"))
    again = teach_text(spec_of(chatty, prompts, out, truncated="drop"))
    assert 0 < first["outcomes"]["truncated"] == again["dropped"]["truncated"] < 7
    assert lines_of(out / "completions.jsonl") == [each for each in before if each["outcome"] == "stopped"]
    assert json.loads((out / "teach-text.json").read_text()) == again


def test_greedy_completions_of_a_repeated_prompt_are_duplicates(chatty: Path, tmp_path: Path) -> None:
    """And they are those of the most probable token each time."""
    (asked,) = chats(1)
    spaced = {
        "messages": [{"role": "user", "content": asked["messages"][0]["content"]}, {"role": "assistant", "content": "no"}]
    }
    summary = teach_text(spec_of(chatty, write_lines(tmp_path / "p.jsonl", [asked, spaced]), tmp_path / "out", temperature=0))
    assert summary["dropped"]["duplicate"] == 1
    (kept,), (dropped,) = (lines_of(tmp_path / "out" / f"{name}.jsonl") for name in ("completions", "dropped"))
    assert (dropped["reason"], dropped["about"], kept["id"]) == ("duplicate", dropped["id"], dropped["id"])
    ((_, found),) = read_log_probs(tmp_path / "out")
    before = f"<|user|>{asked['messages'][0]['content']}<|over|><|assistant|>"
    assert log_probs_after(chatty)(before, found.tokens).argmax(-1).tolist() == list(found.tokens)


def test_an_answer_and_its_trace_are_both_replaced(tmp_path: Path) -> None:
    asked, trace = {"role": "user", "content": "why"}, {"role": "assistant", "channel": "analysis", "content": "hm"}
    path = write_lines(tmp_path / "p.jsonl", [{"messages": [asked, trace, {"role": "assistant", "content": "so"}]}])
    assert [each.messages for each in read_prompts(Path(path))] == [(asked,)]


def test_texts_are_gone_on_with_and_read_as_files(chatty: Path, tmp_path: Path) -> None:
    asked = write_lines(tmp_path / "p.jsonl", [{"prompt": "the state"}, {"prompt": "of people"}])
    teach_text(spec_of(chatty, asked, tmp_path / "out"))
    records = lines_of(tmp_path / "out" / "completions.jsonl")
    assert records
    assert all(record["text"].startswith(record["prompt"]) and record["text"] != record["prompt"] for record in records)
    documents = read_documents(FileTexts(paths=(str(tmp_path / "out" / "completions.jsonl"),)))
    assert [each.id for each in documents] == [record["id"] for record in records]


def test_what_evaluations_hold_is_left_out(chatty: Path, tmp_path: Path) -> None:
    question = "the people of the union and the congress of the nation work for law and peace this year"
    asked = write_lines(tmp_path / "p.jsonl", [{"messages": [{"role": "user", "content": f"Well: {question}?"}]}, *chats(2)])
    held = tmp_path / "task.json"
    held.write_text(json.dumps({"examples": [{"input": question, "target_scores": {"yes": 1, "no": 0}}]}))
    summary = teach_text(spec_of(chatty, asked, tmp_path / "out", decontaminate={"files": [str(held)]}))
    assert summary["dropped"]["contaminated"] == 1
    (dropped,) = lines_of(tmp_path / "out" / "dropped.jsonl")
    assert (dropped["reason"], dropped["about"], dropped["name"]) == ("contaminated", "task.json", "prompt 1, sample 0")


BAD: dict[str, tuple[str, dict[str, Any], type[LimbeckError], str]] = {
    "no file": ("", {"prompts": "nowhere.jsonl"}, DataError, "nowhere.jsonl cannot be read"),
    "no prompt": ("\n", {}, DataError, "holds no prompt"),
    "no JSON": ('{"prompt": "law"}\n{"prompt"\n', {}, DataError, "line 2: not JSON"),
    "no chat": ('{"text": "law"}\n', {}, DataError, "line 1: neither a `prompt`"),
    "nothing asked": ('{"messages": [{"role": "assistant", "content": "law"}]}\n', {}, DataError, "line 1: nothing is asked"),
    "both kinds": ('{"prompt": "law"}\n' + json.dumps(chats(1)[0]), {}, DataError, "line 2: some lines have `messages`"),
    "effort of a text": ('{"prompt": "law"}\n', {"efforts": EFFORTS}, SpecError, "is a text, of which no effort"),
    "too long": (
        '{"prompt": "law"}\n',
        {"max_new_tokens": 300},
        SpecError,
        r"p\.jsonl, line 1 has \d tokens, which with max",
    ),
    "no evaluation": (
        '{"prompt": "law"}\n',
        {"decontaminate": {"files": ["gsm.parquet"]}},
        DataError,
        "no evaluation set that",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_asked_is_refused_before_anything_is_drawn(kind: str, chatty: Path, tmp_path: Path) -> None:
    text, changes, error, complaint = BAD[kind]
    (tmp_path / "p.jsonl").write_text(text)
    asked = changes.get("prompts", str(tmp_path / "p.jsonl"))
    with pytest.raises(error, match=complaint):
        teach_text(spec_of(chatty, asked, tmp_path / "out", **{key: changes[key] for key in changes if key != "prompts"}))
    assert not (tmp_path / "out").exists()


def test_templates_that_cannot_do_what_is_asked_are_refused(teacher_folder: Path, prompts: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no chat template: give it prompts with `prompt`"):
        teach_text(spec_of(teacher_folder, prompts, tmp_path / "out"))
    deaf = make_chatty(tmp_path / "deaf", template=TEMPLATE.replace("reasoning_effort", "mood"))
    with pytest.raises(SpecError, match=r"does not tell efforts low and high apart: set efforts\.high\.system"):
        teach_text(spec_of(deaf, prompts, tmp_path / "out", efforts={"low": {}, "high": {}}))
    told = {"low": {"template": {"mood": "calm"}}, "high": {"template": {"mood": "keen"}}}
    assert teach_text(spec_of(deaf, prompts, tmp_path / "out", efforts=told))["drawn"] == 14


def test_a_damaged_line_is_named(chatty: Path, prompts: str, tmp_path: Path) -> None:
    teach_text(spec_of(chatty, prompts, tmp_path / "out"))
    path = tmp_path / "out" / "drawn.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"group": 0}', *lines[2:], ""]))
    with pytest.raises(LimbeckError, match=r"drawn\.jsonl, line 2 is damaged: remove that line"):
        teach_text(spec_of(chatty, prompts, tmp_path / "out"))
    path.write_text('{"group": 0}\n')
    with pytest.raises(LimbeckError, match="does not say what was asked for"):
        DrawFile(tmp_path / "out", {})
