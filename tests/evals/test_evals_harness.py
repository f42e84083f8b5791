"""The harness through `run_evals`: its accuracies against log-likelihoods by hand, and what is found before anything runs.

Most of it needs the package lm-eval, which the development extra leaves out: install `.[dev,harness]` to run it.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.errors import LimbeckError, SpecError
from limbeck.evals.harness import check
from limbeck.evals.run import run_evals
from limbeck.evals.subject import EvalModel, open_model
from limbeck.spec.base import parse
from limbeck.spec.evals.harness import Harness

FACTS = [
    {"question": "What is the state of the union?", "choices": ["war", "peace and freedom", "law"], "label": 0},
    {"question": "Who are the people?", "choices": ["nation", "the congress of the people"], "label": 1},
    {"question": "Which economy?", "choices": ["work", "energy", "budget policy"], "label": 2},
    {"question": "A year of law?", "choices": ["world", "the union"], "label": 0},
]


@pytest.fixture
def model(teacher_folder: Path) -> EvalModel:
    return open_model("tiny", str(teacher_folder), heldout=None, teacher=None, dtype="float32", device="cpu")


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS), encoding="utf-8")
    return file


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    file = tmp_path / "causes" / "task.json"
    file.parent.mkdir()
    scores = [
        {"the war of the people": 1, "people the of war": 0},
        {"work": 0, "the law and the budget": 1},
        {"a": 1, "energy": 0},
    ]
    examples = [{"input": "", "target_scores": each} for each in scores]
    file.write_text(json.dumps({"examples": examples}), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def spec(*files: Path, **values: Any) -> Harness:
    return parse(Harness, {"files": [str(file) for file in files], "batch_size": 2, **values}, source="test")


@torch.no_grad()
def log_likelihood(folder: Path, context: str, choice: str) -> float:
    """float64, of the choice's tokens after the context's; after the start token where there is none."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = tokenizer(context, add_special_tokens=False)["input_ids"] if context else [0]
    ids = tokenizer(context + choice, add_special_tokens=False)["input_ids"]
    ids = ids if context else [0, *ids]
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    rows_TV = network(torch.tensor([ids])).logits[0].log_softmax(-1)
    return math.fsum(float(rows_TV[place - 1, ids[place]]) for place in range(len(before), len(ids)))


def best(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def test_accuracies_are_those_of_log_likelihoods_by_hand(
    model: EvalModel, teacher_folder: Path, facts: Path, sentences: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    asked = spec(facts, sentences)
    check(model, asked)
    result = run_evals(model, {"harness": asked}, folder=tmp_path)["harness"]
    lines = (tmp_path / "evals" / "harness.samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    causes = [example["target_scores"] for example in json.loads(sentences.read_text(encoding="utf-8"))["examples"]]
    problems = {
        "facts": [(f"Question: {fact['question']}\nAnswer:", fact["choices"], fact["label"], " ") for fact in FACTS],
        "causes": [("", list(scores), best(list(scores.values())), "") for scores in causes],
    }
    for task, asked_of in problems.items():
        right, normed = [], []
        for place, (context, choices, label, blank) in enumerate(asked_of):
            (sample,) = [each for each in samples if (each["task"], each["doc_id"]) == (task, place)]
            by_hand = [log_likelihood(teacher_folder, context, blank + choice) for choice in choices]
            # Sums of some ten float32 log-probabilities, each good to about 1e-6 of some 10.
            assert [value for value, _ in sample["filtered_resps"]] == pytest.approx(by_hand, abs=1e-3)
            right.append(best(by_hand) == label)
            normed.append(best([value / len(choice) for value, choice in zip(by_hand, choices, strict=True)]) == label)
        metric = result.metrics[f"{task}/acc"]
        share, n = sum(right) / len(right), len(right)
        assert (metric.value, metric.n, metric.better) == (pytest.approx(share), n, "higher")
        half = 1.96 * math.sqrt(share * (1 - share) / (n - 1))
        assert (metric.low, metric.high) == (pytest.approx(share - half, abs=1e-4), pytest.approx(share + half, abs=1e-4))
        assert result.metrics[f"{task}/acc_norm"].value == pytest.approx(sum(normed) / n)
    assert 0 < result.metrics["facts/acc"].value < 1  # otherwise the interval's width was not tested
    assert model.tokenizer.backend.pad_token is None  # as it came
    assert (result.details["fewshot"], set(result.details["versions"])) == ({"facts": 0, "causes": 0}, {"facts", "causes"})


def test_answers_are_kept_before_they_are_scored(
    model: EvalModel, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = pytest.importorskip("lm_eval.evaluator")

    def breaks(*arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(evaluator, "_process_results", breaks)
    with pytest.raises(ZeroDivisionError):
        run_evals(model, {"harness": spec(facts)}, folder=tmp_path)
    lines = (tmp_path / "evals" / "harness.generations.jsonl").read_text(encoding="utf-8").splitlines()
    responses = [json.loads(line) for line in lines]
    assert len(responses) == sum(len(fact["choices"]) for fact in FACTS)
    assert {tuple(each["arguments"]) for each in responses} >= {("Question: Who are the people?\nAnswer:", " nation")}
    assert not (tmp_path / "evals" / "harness.json").exists()


def generating(folder: Path, *, answers: tuple[str, ...] = ("x", "y")) -> str:
    """A folder with one task of two questions to be answered in words."""
    (folder / "said.jsonl").write_text(
        "".join(json.dumps({"q": f"the law of {answer}", "a": answer}) + "\n" for answer in answers), encoding="utf-8"
    )
    (folder / "said.yaml").write_text(
        f"task: said\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{folder}/said.jsonl'}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: a\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 8}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
        encoding="utf-8",
    )
    return str(folder)


def test_tasks_of_a_folder_with_limit_and_groups(model: EvalModel, facts: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    folder = tmp_path / "own"
    folder.mkdir()
    asked = spec(facts, tasks=["said"], include_path=generating(folder), limit=1)
    result = run_evals(model, {"two": asked}, folder=tmp_path)["two"]
    assert set(result.metrics) == {"facts/acc", "facts/acc_norm", "said/exact_match"}
    assert {metric.n for metric in result.metrics.values()} == {1}
    assert result.metrics["facts/acc"].low is None  # one document has no spread
    (said,) = [
        json.loads(line)
        for line in (tmp_path / "evals" / "two.generations.jsonl").read_text(encoding="utf-8").splitlines()
        if "generate_until" in line
    ]
    assert said["arguments"][0] == "the law of x"
    assert isinstance(said["response"], str)


def test_an_unknown_task_is_named_with_the_nearest(model: EvalModel, facts: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(SpecError, match=r"tasks=hellaswagg is not a task; did you mean 'hellaswag'"):
        check(model, spec(facts, tasks=["hellaswagg"]))


def test_data_that_are_not_at_hand_are_named(model: EvalModel) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(LimbeckError, match=r"tasks=sciq cannot be loaded .*datasets cache or reachable"):
        check(model, spec(tasks=["sciq"]))


def test_a_students_own_class_generates_row_by_row(model: EvalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(model.reader.model.config, "model_type", "limbeck")
    asked = {"tasks": ["said"], "include_path": generating(tmp_path)}
    with pytest.raises(SpecError, match=r"tasks=said generates, and tiny cannot pad rows: set harness.batch_size=1"):
        check(model, spec(**asked))
    check(model, spec(**asked, batch_size=1))


def test_what_does_not_fit_is_said_before(model: EvalModel, facts: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(SpecError, match="has no chat template"):
        check(model, spec(facts, chat=True))
    with pytest.raises(SpecError, match="include_path=nowhere is not a folder"):
        check(model, spec(facts, include_path="nowhere"))
    with pytest.raises(SpecError, match=r"none\.jsonl is not there"):
        check(model, spec(facts, tmp_path / "none.jsonl"))
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "task.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SpecError, match="two files that become the task facts"):
        check(model, spec(facts, tmp_path / "facts" / "task.json"))


def test_a_missing_package_is_said_before(model: EvalModel, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(LimbeckError, match=r"needs the package lm-eval .*pip install 'limbeck\[harness\]'"):
        check(model, spec(facts))


def test_nothing_asked_for_is_refused() -> None:
    with pytest.raises(SpecError, match="neither tasks nor files"):
        spec()
