"""Word problems: formats and numbers by hand, prompts read as a model would, nats against float64 arithmetic."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from limbeck.errors import DataError, LimbeckError, SpecError
from limbeck.evals import gsm
from limbeck.evals.generate import Sample
from limbeck.evals.gsm_problems import EXAMPLES, Problem, flexible_answer, normalised, read_problems, strict_answer
from limbeck.evals.run import run_evals
from limbeck.spec.evals import Eval
from limbeck.spec.evals.gsm import Gsm

TOML = '''question = "Ann has 3 pens. She buys 4. How many?"
answer = """
She has <<3+4=7>>7 pens.

#### 7
"""
question_annotated = "unused"
'''


@pytest.fixture
def problems_file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    records = [
        {"question": f"What is {n} and {n}?", "answer": f"It is {n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"}
        for n in (500, 2, 3, 4)
    ]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1,000", "1000"),
        ("1000", "1000"),
        ("1000.00", "1000"),
        ("$1,000.", "1000"),
        ("-3.50", "-3.5"),
        ("-0", "0"),
        ("100", "100"),
        ("0.10", "0.1"),
        (".5", "0.5"),
        ("1.2.3", None),
        (".", None),
        ("", None),
        ("Infinity", None),
    ],
)
def test_numbers_have_one_spelling(written, number):
    assert normalised(written) == number


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("So 6*7=42. The answer is 42.", "42", "42"),
        ("The answer is $1,200.50.", "1200.5", "1200.5"),
        ("The answer is 42. Also 43.", "42", "43"),
        ("The answer is 42", "42", "42"),
        ("reasoning\n#### 1,000", "1000", "1000"),
        ("I think it is 17 dollars", None, "17"),
        ("between 3-4", None, "4"),
        ("it fell to -4 degrees", None, "-4"),
        ("no idea", None, None),
        ("The answer is ...", None, None),
        ("The answer is: 42", None, "42"),
        ("10% of 5, that is .5", None, "0.5"),
    ],
)
def test_numbers_are_found_in_what_models_write(text, strict, flexible):
    assert strict_answer(text) == strict
    assert flexible_answer(text) == flexible


def test_our_own_examples_are_eight_and_right():
    assert len(EXAMPLES) == 8
    for each in EXAMPLES:
        sums = re.findall(r"([\d.]+(?: [-+*/] [\d.]+)+) = ([\d.]*\d)", each.reasoning)
        assert sums[-1][1] == each.answer, "the last sum is the answer"
        for left, right in sums:
            assert eval(left) == float(right), each.question  # digits and signs alone


def test_formats_are_read(tmp_path, problems_file):
    first = read_problems(problems_file)[0]
    assert first == Problem("problems.jsonl, line 1", "What is 500 and 500?", "It is 500+500=1000.", "1000")
    folder = tmp_path / "symbolic"
    folder.mkdir()
    (folder / "0007.toml").write_text(TOML, encoding="utf-8")
    assert read_problems(folder) == [Problem("0007.toml", "Ann has 3 pens. She buys 4. How many?", "She has 7 pens.", "7")]
    mgsm = tmp_path / "mgsm.jsonl"
    mgsm.write_text(json.dumps({"question": "Wie viele?", "answer": None, "answer_number": 18}), encoding="utf-8")
    assert read_problems(mgsm) == [Problem("mgsm.jsonl, line 1", "Wie viele?", "", "18")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "x"}, r"line 1: needs `question`, and `answer` or `answer_number`"),
        ({"question": "x", "answer": "seven"}, r"line 1: the answer ends in no number"),
        ({"question": "x", "answer": "a #### b"}, r"line 1: the answer ends in no number"),
    ],
)
def test_problems_that_are_none_are_named(tmp_path, record, message):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_problems(path)


def test_an_empty_folder_and_bad_toml_are_named(tmp_path):
    with pytest.raises(DataError, match="holds no problem"):
        read_problems(tmp_path)
    (tmp_path / "1.toml").write_text("question = ", encoding="utf-8")
    with pytest.raises(DataError, match=r"1\.toml: not TOML"):
        read_problems(tmp_path)


def test_prompts_hold_the_examples_and_the_question(tiny, problems_file):
    spec = Gsm(path=str(problems_file), shots=1, shots_path=str(problems_file))
    problems, shots = gsm.problems_of(spec)
    assert [problem.answer for problem in problems] == ["4", "6", "8"], "the first is an example and isn't asked"
    prompt = gsm.prompt_of(tiny, problems[0], spec, shots=shots)
    expected = "<s>Q: What is 500 and 500?\nA: It is 500+500=1000. The answer is 1000.\n\nQ: What is 2 and 2?\nA:"
    assert tiny.tokenizer.backend.decode(prompt.tokens) == expected


def test_chats_ask_without_examples(chatty, problems_file):
    spec = Gsm(path=str(problems_file), format="chat", num_problems=1)
    problems, shots = gsm.problems_of(spec)
    assert (len(problems), shots) == (1, ())
    text = chatty.tokenizer.backend.decode(gsm.prompt_of(chatty, problems[0], spec, shots=shots).tokens)
    assert text.startswith("<|user|>What is 500 and 500?\n\nReason step by step.")
    assert text.endswith("<|over|>\n<|assistant|>")


def test_bad_settings_are_refused_first(tiny, problems_file, tmp_path):
    with pytest.raises(DataError, match="no chat template: set format=shots"):
        gsm.check(tiny, Gsm(path=str(problems_file), format="chat"))
    with pytest.raises(DataError, match=r"shots=9 is more than the 8 examples of Limbeck's own: set shots_path"):
        gsm.check(tiny, Gsm(path=str(problems_file), shots=9))
    with pytest.raises(DataError, match="every problem is one of the 4 examples"):
        gsm.check(tiny, Gsm(path=str(problems_file), shots=4, shots_path=str(problems_file)))
    with pytest.raises(SpecError, match="max_new_tokens=320: lower it"):
        gsm.check(tiny, Gsm(path=str(problems_file), shots=0))
    with pytest.raises(DataError, match="cannot be read"):
        gsm.check(tiny, Gsm(path=str(tmp_path / "absent.jsonl")))
    gsm.check(tiny, Gsm(path=str(problems_file), shots=0, max_new_tokens=8))


def test_reasoning_that_is_too_long_or_damaged_is_said_in_one_line(tiny, tmp_path):
    """The tiny model reads 256 tokens: the last of an answer is predicted, and not read."""
    path, backend = tmp_path / "long.jsonl", tiny.tokenizer.backend
    asked = Gsm(path=str(path), shots=0, max_new_tokens=4)

    def write(words: int) -> int:
        reasoning = "zq" * words
        path.write_text(json.dumps({"question": "a?", "answer": f"{reasoning}\n#### 2"}), encoding="utf-8")
        return len(backend(f"Q: a?\nA: {reasoning} The answer is 2.")["input_ids"])  # and the start token, less the last

    words = next(words for words in range(80, 140) if write(words) > 256)
    with pytest.raises(SpecError, match=r"line 1 has 25[78] with its reasoning and answer: set gsm.answer_nats=false"):
        gsm.check(tiny, asked)
    gsm.check(tiny, asked.model_copy(update={"answer_nats": False}))
    assert write(words - 1) <= 256
    gsm.check(tiny, asked)
    torch.nn.init.constant_(tiny.reader.model.model.norm.weight, float("nan"))
    with pytest.raises(LimbeckError, match="answer_nats is not finite"):
        gsm.measure(tiny, asked)


def test_attempts_fall_into_one_class_each():
    problem = Problem("p", "q", "r", "42")
    loop, plain = (7,) * 40, tuple(range(40))
    given = [
        ("", (), True, "empty"),
        ("The answer is 42.", plain, True, "stopped_correct"),
        ("That makes 42", plain, True, "stopped_correct"),
        ("The answer is 41. Not 42", plain, True, "stopped_wrong"),
        ("no idea", plain, True, "stopped_no_answer"),
        ("The answer is 42. The answer is 42.", loop, False, "truncated_loop"),
        ("first", plain, False, "truncated_no_loop"),
    ]
    samples = [Sample("p", "q", text, tokens, stopped, 0, 7, 14.0) for text, tokens, stopped, _ in given]
    metrics, details = gsm.score([problem] * 7, samples, loop_text=lambda tokens: "")
    assert [each["outcome"] for each in details["problems"]] == [expected for *_, expected in given]
    assert metrics["accuracy_strict"].value == pytest.approx(2 / 7)
    assert metrics["accuracy_flexible"].value == pytest.approx(4 / 7), "41, then 42, is 42 to the flexible reading"
    assert sum(metrics[f"share_{each}"].value for each in gsm.OUTCOMES) == pytest.approx(1)
    assert metrics["seconds_per_problem"].value == pytest.approx(2)
    assert metrics["output_tokens_median"].value == 40


def test_answer_nats_are_those_of_whole_forward_passes(tiny, problems_file, tmp_path):
    spec = Gsm(path=str(problems_file), shots=1, shots_path=str(problems_file), max_new_tokens=4, batch_size=3)
    result = run_evals(tiny, {"sums": spec}, folder=tmp_path)["sums"]
    backend = tiny.tokenizer.backend
    shown = "Q: What is 500 and 500?\nA: It is 500+500=1000. The answer is 1000.\n\n"
    expected = []
    for n in (2, 3, 4):
        asked = [0, *backend(f"{shown}Q: What is {n} and {n}?\nA:")["input_ids"]]
        worked = backend(f" It is {n}+{n}={2 * n}. The answer is")["input_ids"]
        answer = backend(f" {2 * n}.")["input_ids"]
        ids = torch.tensor([[*asked, *worked, *answer]])
        with torch.no_grad():
            table = tiny.reader.model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        expected.append(-float(sum(table[-len(answer) + i, token] for i, token in enumerate(answer))))
    found = [each["answer_nats"] for each in result.details["problems"]]
    assert found == pytest.approx(expected, abs=1e-3)
    assert result.metrics["answer_nats"].value == pytest.approx(np.mean(expected), abs=1e-3)
    assert [each["name"] for each in result.details["problems"]] == [f"problems.jsonl, line {n}" for n in (2, 3, 4)]


def test_chats_begin_their_answer_without_a_space(chatty, problems_file):
    spec = Gsm(path=str(problems_file), format="chat", num_problems=1, max_new_tokens=2)
    _, details = gsm.measure(chatty, spec)
    asked = gsm.prompt_of(chatty, gsm.problems_of(spec)[0][0], spec, shots=()).tokens.tolist()
    encode = chatty.tokenizer.backend
    ids = [*asked, *encode("It is 500+500=1000. The answer is")["input_ids"], *encode(" 1000.")["input_ids"]]
    length = len(encode(" 1000.")["input_ids"])
    with torch.no_grad():
        table = chatty.reader.model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    expected = -float(table[-length:].gather(1, torch.tensor(ids[-length:])[:, None]).sum())
    assert details["problems"][0]["answer_nats"] == pytest.approx(expected, abs=1e-3)


def test_attempts_end_before_the_next_question(tiny, problems_file, monkeypatch):
    seen = {}

    def written(model, prompts, how, *, path, stop_strings):
        seen["strings"] = stop_strings
        return [Sample(each.name, each.text, " 4", (5,), True, 0, 1, 1.0) for each in prompts]

    monkeypatch.setattr(gsm, "generate", written)
    spec = Gsm(path=str(problems_file), shots=0, answer_nats=False)
    gsm.measure(tiny, spec)
    assert seen["strings"] == ("\nQ:",)


def test_the_spec_is_one_of_the_union():
    spec = TypeAdapter(Eval).validate_python({"kind": "gsm", "path": "x"})
    assert spec == Gsm(path="x")
