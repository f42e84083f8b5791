"""Generation health: stop tokens against float64 arithmetic, outcomes by hand, prompts of all kinds, the whole kind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from limbeck.errors import DataError, LimbeckError, SpecError
from limbeck.eval_results import read_results
from limbeck.evals import generation
from limbeck.evals.generate import Sample
from limbeck.evals.metrics import mean, quantile, share
from limbeck.evals.prompts import prompts_of
from limbeck.evals.run import run_evals
from limbeck.evals.stop_tokens import at_ends, read_stops
from limbeck.spec.evals.generation import Generation


@torch.no_grad()
def log_probs(model, text: np.ndarray) -> torch.Tensor:
    """float64 log-probabilities [rows, V]."""
    return model.reader.model(input_ids=torch.from_numpy(text)[None]).logits[0, :-1].double().log_softmax(-1)


def test_stop_tokens_are_those_of_whole_forward_passes(tiny, monkeypatch):
    monkeypatch.setattr("limbeck.teachers.score.HEAD_ELEMENTS", {"cpu": 300 * 7})  # seven rows of logits at a time
    drawn = np.random.default_rng(1)
    stops = (1, 17)
    texts = [np.array([0, *drawn.integers(20, 290, length), 1]) for length in (5, 40, 12)]
    texts[1][9] = 17  # the turn of somebody else ends here
    ends = at_ends(tiny.reader, texts, stops)
    tables = [log_probs(tiny, text) for text in texts]
    for index, table in enumerate(tables):
        together = table[-1, list(stops)].logsumexp(0)
        assert ends.log_mass_nats[index] == pytest.approx(float(together), abs=1e-4)
        ranks = [1 + int((table[-1] > table[-1, stop]).sum()) for stop in stops]
        assert ends.best_rank[index] == min(ranks)
    masses = [
        float(table[row, list(stops)].exp().sum())
        for text, table in zip(texts, tables, strict=True)
        for row in range(len(table))
        if int(text[row + 1]) not in stops
    ]
    assert ends.other_rows == len(masses) == 6 + 41 + 13 - 3 - 1
    assert ends.false_stop_mass == pytest.approx(np.mean(masses), rel=1e-4)
    assert ends.log_prob_by_id[17] == pytest.approx(float(np.mean([float(table[-1, 17]) for table in tables])), abs=1e-4)
    middle = np.median([1 + int((table[-1] > table[-1, 1]).sum()) for table in tables])
    assert ends.median_rank_by_id[1] == middle


def test_damaged_models_are_named(tiny):
    tiny.reader.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(LimbeckError, match="not finite"):
        list(read_stops(tiny.reader, [np.array([0, 5, 1])], (1,)))


def sample(tokens: list[int], *, stopped: bool, text: str = "x") -> Sample:
    return Sample("n", "p", text, tuple(tokens), stopped, 0, 1, 1.0)


def test_outcomes_are_exclusive_and_in_their_order():
    loop, plain = [7] * 40, list(range(40))
    samples = [
        sample([], stopped=True),
        sample(loop, stopped=True),
        sample(plain, stopped=True),
        sample(loop, stopped=False),
        sample(plain, stopped=False),
    ]
    metrics, details = generation.score(samples, loop_text=lambda tokens: " ".join(map(str, tokens)))
    assert [each["outcome"] for each in details["samples"]] == [
        "empty",
        "stopped",
        "stopped",
        "truncated_loop",
        "truncated_no_loop",
    ]
    assert metrics["share_stopped"].value == 0.4
    assert sum(metrics[f"share_{each}"].value for each in generation.OUTCOMES) == pytest.approx(1)
    assert metrics["loop_share"].value == 0.4
    assert metrics["output_tokens_mean"].value == 32
    assert metrics["seq_rep_4"].value == pytest.approx((0 + 2 * (1 - 1 / 37) + 0) / 5)
    assert metrics["distinct_1"].value == pytest.approx(40 / 160)


def test_a_loop_is_marked_in_the_text():
    tokens = [1, 2, 3, *([4, 5] * 20)]
    words = {1: "We", 2: " say", 3: ":", 4: " no", 5: " more"}
    text = "".join(words[token] for token in tokens)
    _, details = generation.score(
        [sample(tokens, stopped=False, text=text)], loop_text=lambda part: "".join(words[token] for token in part)
    )
    loop = details["samples"][0]["loop"]
    assert (loop["period"], loop["start"], loop["repeats"], loop["text"]) == (2, 3, 20, " no more")
    assert text[: loop["start_character"]] == "We say:"
    assert text[loop["start_character"] : loop["stop_character"]] == " no more" * 20


def test_intervals_of_shares_are_wilsons():
    # Brown, Cai & DasGupta 2001: for 0 of n the upper end is z^2 / (n + z^2)
    found = share(0, 20)
    assert (found.value, found.low, found.n) == (0, 0, 20)
    assert found.high == pytest.approx(1.959964**2 / (20 + 1.959964**2), abs=1e-5)
    half = share(5, 10)
    assert half.low == pytest.approx(0.5 - (half.high - 0.5))
    assert half.high == pytest.approx(0.7634, abs=1e-4)


def test_means_have_intervals_and_one_value_has_none():
    found = mean([1.0, 2.0, 3.0, 6.0])
    assert found.value == 3
    assert 1 <= found.low < 3 < found.high <= 6
    assert mean([4.0]).low is None
    assert quantile([1, 2, 3, 4, 100], 0.5).value == 3


def test_the_whole_kind_is_measured_kept_and_resumed(tiny, tmp_path, monkeypatch):
    spec = Generation(num_prompts=2, prompt_tokens=8, max_new_tokens=30, batch_size=2)
    generation.check(tiny, spec)
    result = run_evals(tiny, {"health": spec}, folder=tmp_path)["health"]
    assert read_results(tmp_path)["health"] == result
    assert (tmp_path / "evals" / "health.generations.jsonl").is_file()
    assert result.metrics["output_tokens_mean"].n == 2
    assert result.metrics["end_rank_median"].n == 2
    assert result.details["stop_tokens"]["ids"] == {"1": "</s>"}
    assert {"seq_rep_4", "distinct_2", "rep_w16", "compression_ratio", "loop_share", "false_stop_mass"} <= set(result.metrics)
    (tmp_path / "evals" / "health.json").unlink()
    monkeypatch.setattr("limbeck.evals.generate._write", None)  # no sample is made again
    again = run_evals(tiny, {"health": spec}, folder=tmp_path)["health"]
    assert again.metrics == result.metrics


def test_prompts_are_the_beginnings_of_documents(tiny, texts_folder):
    backend = AutoTokenizer.from_pretrained(tiny.tokenizer.folder)
    texts = [path.read_text(encoding="utf-8") for path in (texts_folder / "heldout").glob("*.txt")]
    found = prompts_of(tiny, Generation(prompt_tokens=10))
    assert sorted(tuple(prompt.tokens) for prompt in found) == sorted(
        (0, *backend(text, add_special_tokens=False)["input_ids"][:10]) for text in texts
    )
    assert all(any(text.startswith(prompt.text) for text in texts) for prompt in found)
    assert len(prompts_of(tiny, Generation(prompt_tokens=10, num_prompts=1))) == 1
    with pytest.raises(DataError, match=r"no held-out document has more than prompt_tokens=5000 tokens: lower it"):
        prompts_of(tiny, Generation(prompt_tokens=5000))


def test_prompts_of_files(chatty, tmp_path: Path):
    texts = tmp_path / "prompts.txt"
    texts.write_text("law\n\nwork and peace\n", encoding="utf-8")
    backend = chatty.tokenizer.backend
    assert [prompt.text for prompt in prompts_of(chatty, Generation(prompts=str(texts)))] == ["law", "work and peace"]
    chats = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "law"}, {"messages": [{"role": "user", "content": "peace"}]}]
    chats.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    plain, chat = prompts_of(chatty, Generation(prompts=str(chats)))
    assert backend.decode(plain.tokens) == "<s>law"
    assert backend.decode(chat.tokens) == "<|user|>peace<|over|>\n<|assistant|>"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"p.jsonl, line 1: not JSON"),
        ("[1]", r"p.jsonl, line 1: not an object"),
        ('{"text": "x"}', r"p.jsonl, line 1: neither a `prompt`"),
        ('{"messages": [{"role": "user"}]}', r"p.jsonl, line 1: neither a `prompt`"),
        ('{"messages": [{"role": "user", "content": "x"}]}', r"no chat template: give it prompts with `prompt`"),
    ],
)
def test_prompts_that_are_none_are_named(tiny, tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        generation.check(tiny, Generation(prompts=str(path)))


def test_checks_come_before_hours(tiny, tmp_path):
    with pytest.raises(SpecError, match="lower it or shorten"):
        generation.check(tiny, Generation(max_new_tokens=300))
    with pytest.raises(DataError, match=r"absent.txt cannot be read"):
        generation.check(tiny, Generation(prompts=str(tmp_path / "absent.txt")))


def test_chats_end_where_the_template_says(chatty, tmp_path):
    path = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "law"}, {"role": "assistant", "content": "peace and work"}]
    path.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("law\n", encoding="utf-8")
    spec = Generation(prompts=str(prompts), end_chats=str(path), max_new_tokens=8)
    generation.check(chatty, spec)
    metrics, details = generation.measure(chatty, spec)
    backend = chatty.tokenizer.backend
    ids = backend("<|user|>law<|over|>\n<|assistant|>peace and work<|over|>", add_special_tokens=False)["input_ids"]
    table = log_probs(chatty, np.array(ids))
    assert metrics["end_log_prob_nats_chats"].value == pytest.approx(float(table[-1, [1, 302]].logsumexp(0)), abs=1e-4)
    assert details["stop_tokens"]["chats"]["by_id"]["302"]["log_prob_nats"] == pytest.approx(float(table[-1, 302]), abs=1e-4)
    path.write_text(json.dumps({"messages": messages[:1]}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"chats.jsonl, line 1: the last message is not the assistant's"):
        generation.check(chatty, spec)


def test_what_did_not_stop_says_how_near_it_came(tiny):
    spec = Generation(num_prompts=1, prompt_tokens=8, max_new_tokens=12, end_documents=0)
    samples: list[Sample] = []
    prompt = prompts_of(tiny, spec)[0]
    metrics, _ = generation.measure(tiny, spec)
    samples = generation.generate(tiny, [prompt], spec)
    assert not samples[0].stopped
    table = log_probs(tiny, np.array([*prompt.tokens, *samples[0].tokens]))
    assert metrics["truncated_stop_mass_max"].value == pytest.approx(float(table[8:, 1].exp().max()), rel=1e-4)
