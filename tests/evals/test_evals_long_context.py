"""The long-context evaluation through `run_evals`: its numbers against plain float64 arithmetic on transformers' own logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from tiny_students import moe
from tiny_world import make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Olmo3Config, Qwen2Config

from limbeck.errors import LimbeckError, SpecError
from limbeck.evals import long_context
from limbeck.evals.long_context import check, sliding_window, wilson
from limbeck.evals.ruler import make
from limbeck.evals.ruler_prompts import Material
from limbeck.evals.run import run_evals
from limbeck.evals.subject import EvalModel, open_model
from limbeck.spec.base import parse
from limbeck.spec.data import FileTexts
from limbeck.spec.evals.long_context import SYNTHETIC, LongContext
from limbeck.students.registered import LimbeckConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with room for 2,048 tokens."""
    folder = tmp_path_factory.mktemp("long")
    make_tokenizer(folder, vocab_size=1000)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder: Path, texts_folder: Path) -> EvalModel:
    heldout = FileTexts(paths=(f"{texts_folder}/train/*.txt",))
    return open_model("long", str(folder), heldout=heldout, teacher=None, dtype="float32", device="cpu")


def spec(**values: Any) -> LongContext:
    return parse(
        LongContext, {"lengths": [1400, 1900], "samples": 2, "tasks": ["niah_single_1", "vt"], **values}, source="test"
    )


def records(folder: Path, name: str = "long_context") -> list[dict[str, Any]]:
    lines = (folder / "evals" / f"{name}.generations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[1:]]


@torch.no_grad()
def nats_per_token(folder: Path, question: str, answer: str) -> tuple[float, float]:
    """Of the tokens that lie wholly or in part in the answer, by the tokenizer's own account of characters."""
    encoded = AutoTokenizer.from_pretrained(folder)(question + answer, add_special_tokens=False, return_offsets_mapping=True)
    ids = [0, *encoded["input_ids"]]
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    log_probs_TV = network(torch.tensor([ids])).logits[0].log_softmax(-1)
    places = [place + 1 for place, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(question)]
    assert len(places) > 3
    nats = [-float(log_probs_TV[place - 1, ids[place]]) for place in places]
    right = [int(log_probs_TV[place - 1].argmax()) == ids[place] for place in places]
    return sum(nats) / len(nats), sum(right) / len(right)


def test_likelihoods_are_those_of_plain_logits(model: EvalModel, folder: Path, tmp_path: Path) -> None:
    asked = spec(generate=False, lengths=[1900])
    metrics = run_evals(model, {"long_context": asked}, folder=tmp_path)["long_context"].metrics
    backend = model.tokenizer.backend
    gains = []
    for task in asked.tasks:
        of_task = []
        for index in range(2):
            count = lambda text: 1 + len(backend(text, add_special_tokens=False)["input_ids"])  # noqa: E731
            found = make(task, 1900, index, seed=0, material=Material(), count=count)
            assert found is not None
            prompt = found[0]
            (record,) = [each for each in records(tmp_path) if (each["task"], each["index"]) == (task, index)]
            nats, right = nats_per_token(folder, prompt.text + prompt.prefix, prompt.gold)
            without, _ = nats_per_token(folder, prompt.without + prompt.prefix, prompt.gold)
            # Means of a few dozen float32 nats, each good to about 1e-6 of some 10.
            assert record["nats"] == pytest.approx(nats, rel=1e-4)
            assert record["nats_without"] == pytest.approx(without, rel=1e-4)
            assert record["answer_token_accuracy"] == pytest.approx(right)
            assert record["tokens"] + (30 if task == "vt" else 128) <= 1900
            of_task.append(without - nats)
        assert metrics[f"{task}/1900/gain_nats"].value == pytest.approx(sum(of_task) / 2, abs=1e-4)
        assert abs(sum(of_task)) > 0.01  # a random network's answer also depends on what it reads
        gains += of_task
    assert metrics["average/1900/gain_nats"].value == pytest.approx(sum(gains) / 4, abs=1e-4)
    assert not any("percent" in name for name in metrics)


@torch.no_grad()
def test_what_is_generated_is_the_likeliest_token_after_token(model: EvalModel, folder: Path, tmp_path: Path) -> None:
    asked = spec(likelihood=False, tasks=["vt"], lengths=[1400], samples=1)
    run_evals(model, {"long_context": asked}, folder=tmp_path)
    count = lambda text: 1 + len(model.tokenizer.backend(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    found = make("vt", 1400, 0, seed=0, material=Material(), count=count)
    assert found is not None
    tokenizer, network = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    )
    ids = [0, *tokenizer(found[0].text + found[0].prefix, add_special_tokens=False)["input_ids"]]
    begin = len(ids)
    while len(ids) < begin + 30 and (len(ids) == begin or ids[-1] != 1):
        ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    (record,) = records(tmp_path)
    assert record["output"] == tokenizer.decode(ids[begin:], skip_special_tokens=True)
    assert record["tokens"] == begin


def test_the_models_own_penalties_are_set_aside_and_its_stop_tokens_are_not(model: EvalModel, folder: Path) -> None:
    """With a penalty in generation_config the same tokens come, and a stop token that the tokenizer lacks ends them."""
    network, ids = model.reader.model, [0, *range(10, 40)]
    plain = list(ids)
    with torch.no_grad():
        while len(plain) < len(ids) + 12:
            plain.append(int(network(torch.tensor([plain])).logits[0, -1].argmax()))
    decode = AutoTokenizer.from_pretrained(folder).decode
    network.generation_config.no_repeat_ngram_size = 1
    network.generation_config.repetition_penalty = 50.0
    assert long_context._generate(model, ids, tokens=12) == decode(plain[len(ids) :], skip_special_tokens=True)
    assert network.generation_config.repetition_penalty == 50.0, "as it was"
    network.generation_config.eos_token_id = [1, plain[len(ids) + 3]]
    end = plain.index(plain[len(ids) + 3], len(ids))
    assert long_context._generate(model, ids, tokens=12) == decode(plain[len(ids) : end + 1], skip_special_tokens=True)


def answers_to(monkeypatch: pytest.MonkeyPatch, *, right: Any) -> list[tuple[str, int]]:
    """Models that say the gold answer where `right(length, index)`, and nothing elsewhere."""
    asked: list[tuple[str, int]] = []

    def answered(model: Any, spec: Any, task: str, prompt: Any) -> dict[str, Any]:
        length = 1400 if len(model.tokenizer.backend(prompt.text)["input_ids"]) <= 1400 else 1900
        index = sum(each == (task, length) for each in asked)
        asked.append((task, length))
        said = prompt.gold if right(length, index) else "no"
        return {"tokens": 1, "depths": prompt.depths, "answers": prompt.answers, "any": False, "output": said}

    monkeypatch.setattr(long_context, "_answered", answered)
    return asked


def test_scores_averages_and_the_effective_length(model: EvalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1,400 tokens all answers are right, at 1,1400 one of four; the model's window is 1,500."""
    answers_to(monkeypatch, right=lambda length, index: length == 1400 or index == 2)
    monkeypatch.setattr(long_context, "sliding_window", lambda config: 1500)
    result = run_evals(model, {"long_context": spec(samples=4)}, folder=tmp_path)["long_context"]
    found = {name: metric.value for name, metric in result.metrics.items()}
    assert found == {
        "niah_single_1/1400/percent": 100,
        "vt/1400/percent": 100,
        "average/1400/percent": 100,
        "niah_single_1/1900/percent": 25,
        "vt/1900/percent": 25,
        "average/1900/percent": 25,
        "below_window/percent": 100,
        "above_window/percent": 25,
        "effective_length_tokens": 1400,
    }
    interval = binomtest(2, 8).proportion_ci(method="wilson")
    metric = result.metrics["average/1900/percent"]
    assert (metric.low, metric.high, metric.n) == (pytest.approx(100 * interval.low), pytest.approx(100 * interval.high), 8)
    rows = result.details["by_depth"]
    assert sum(row["n"] for row in rows) == 8  # niah_single_1 alone asks for one needle
    assert {row["percent"] for row in rows if row["length"] == 1400} == {100}
    assert result.details["sliding_window"] == 1500


def test_an_average_below_the_threshold_is_no_effective_length(
    model: EvalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_to(monkeypatch, right=lambda length, index: index < 3)
    result = run_evals(model, {"long_context": spec(samples=4)}, folder=tmp_path)["long_context"]
    assert result.metrics["effective_length_tokens"].value == 0
    assert "below_window/percent" not in result.metrics


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (3, 7), (20, 20)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == (pytest.approx(interval.low, abs=1e-6), pytest.approx(interval.high, abs=1e-6))


def test_a_killed_evaluation_continues(model: EvalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def three(length: int, index: int) -> bool:
        if len(asked) == 4:
            raise Killed
        return True

    asked = answers_to(monkeypatch, right=three)
    with pytest.raises(Killed):
        run_evals(model, {"long_context": spec()}, folder=tmp_path)
    file = tmp_path / "evals" / "long_context.generations.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + '{"task": "ha', encoding="utf-8")  # and in the middle of a line
    again = answers_to(monkeypatch, right=lambda length, index: True)
    result = run_evals(model, {"long_context": spec()}, folder=tmp_path)["long_context"]
    assert len(again) == 8 - 3
    assert len(records(tmp_path)) == 8
    assert result.metrics["average/1900/percent"].n == 4
    other = answers_to(monkeypatch, right=lambda length, index: True)
    run_evals(model, {"long_context": spec(seed=1)}, folder=tmp_path)  # other prompts: none of those answers counts
    assert len(other) == 8


def test_answers_with_separators_of_lines_are_kept(model: EvalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no ends of records; half a letter at the end of the file is a record that is missing."""
    said: list[int] = []
    monkeypatch.setattr(long_context, "_generate", lambda *_, tokens: said.append(tokens) or "a\u2028b\x85c\u2029")
    asked = {"long_context": spec(likelihood=False, tasks=["vt"], lengths=[1400])}
    run_evals(model, asked, folder=tmp_path)
    file = tmp_path / "evals" / "long_context.generations.jsonl"
    file.write_bytes(file.read_bytes().rsplit(b"\x80\xa8", 1)[0])  # a kill in the middle of the second record's U+2028
    (tmp_path / "evals" / "long_context.json").unlink()
    run_evals(model, asked, folder=tmp_path)
    assert len(said) == 3
    lines = file.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["output"] for line in lines[1:-1]] == ["a\u2028b\x85c\u2029"] * 2


def test_windows_are_read_from_the_configuration() -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    assert sliding_window(Olmo3Config(sliding_window=128, num_hidden_layers=4, layer_types=kinds)) == 128
    assert sliding_window(Olmo3Config(sliding_window=128, num_hidden_layers=2, layer_types=["full_attention"] * 2)) is None
    assert sliding_window(Qwen2Config(sliding_window=128, use_sliding_window=False)) is None
    assert sliding_window(LlamaConfig()) is None
    assert sliding_window(LimbeckConfig(student=moe(sliding_window=7).model_dump(mode="json"))) == 7
    assert sliding_window(LimbeckConfig(student=moe(full_attention_every=1).model_dump(mode="json"))) is None


def test_default_tasks_are_all_that_need_no_data(model: EvalModel) -> None:
    assert LongContext().tasks == SYNTHETIC
    assert len(SYNTHETIC) == 11
    check(model, LongContext(tasks=("niah_single_2", "fwe"), samples=1, lengths=(1500,)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lengths": [1400, 4096]}, r"lengths=4096, but long reads 2048 tokens"),
        (
            {"lengths": [400, 1400]},
            r"lengths=400 is too short for niah_single_1, vt",
        ),
        ({"chat": True}, "has no chat template"),
        ({"tasks": ["cwe"], "lengths": [2000]}, "too little text for cwe"),
    ],
)
def test_what_cannot_be_measured_is_said_before(model: EvalModel, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check(model, spec(**values))


def test_essays_must_come_from_somewhere(folder: Path) -> None:
    model = open_model("long", str(folder), heldout=None, teacher=None, dtype="float32", device="cpu")
    check(model, spec(lengths=[1400]))
    with pytest.raises(LimbeckError, match="long_context reads held-out texts and long names none"):
        check(model, spec(tasks=["niah_single_2"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": ["qa"]}, "set qa_file"),
        ({"tasks": ["vt", "vt"]}, "tasks names something twice"),
        ({"generate": False, "likelihood": False}, "set one to true"),
        ({"tasks": ["niah_single_4"]}, "tasks"),
    ],
)
def test_specs_that_say_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(**values)
