"""`limbeck plan`: the answers as JSON and as lines, what they warn of, and what they refuse.

The losses are those of arXiv 2502.08606's laws as an independent script evaluated them; the mathematics has its own tests in
tests/plan.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SCENARIOS = ("best_case", "teacher_inference", "teacher_pretraining", "teacher_pretraining_and_inference")


@pytest.fixture
def plan(limbeck: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """`plan("--student", "1B")`: the answer as JSON."""

    def ask(*arguments: object) -> dict[str, Any]:
        outcome = limbeck("plan", *arguments, "--json")
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    return ask


def test_a_budget_is_answered_for_training_alone_and_the_four_scenarios(plan: Callable[..., dict[str, Any]]) -> None:
    answer = plan("--student", "1B", "--flops", "1e21")
    assert {"supervised", *SCENARIOS, "verdict", "warnings"} <= answer.keys()
    losses = [answer[name]["loss_nats"] for name in ("supervised", *SCENARIOS)]
    assert losses == pytest.approx([2.2215, 2.1925, 2.2085, 2.2810, 2.2979], abs=5e-4)
    both = answer["teacher_pretraining_and_inference"]
    assert [both[name] for name in ("teacher_params", "teacher_tokens", "student_tokens")] == pytest.approx(
        [1.6e9, 4.7e10, 4.2e10], rel=0.05
    )
    for name in SCENARIOS:
        assert answer[name].keys() == {
            "loss_nats", "student_tokens", "teacher_params", "teacher_tokens", "teacher_loss_nats", "flops",
        }  # fmt: skip
        assert answer[name]["flops"].keys() == {"student", "teacher_inference", "teacher_pretraining"}
        assert sum(answer[name]["flops"].values()) == pytest.approx(1e21, rel=1e-9)
    assert answer["supervised"].keys() == {"loss_nats", "student_tokens"}


def test_the_verdict_follows_from_who_pays_for_what(plan: Callable[..., dict[str, Any]]) -> None:
    said = plan("--student", "1B", "--flops", "1e21")["verdict"]
    assert said.startswith("distil: 2.2085 nats against 2.2215 nats alone, if the teacher exists and you pay for its reading")
    assert "train without a teacher if pretraining it" in said
    assert plan("--student", "1B", "--flops", "1e22")["verdict"].startswith(
        "distil: 2.1310"
    )  # reading alone costs 2.1395 > 2.1348
    late = plan("--student", "1B", "--flops", "1e24")
    assert late["verdict"].startswith("train without a teacher: 2.0867 nats alone")
    tiny = plan("--student", "10B", "--flops", "1e20")
    assert tiny["verdict"].startswith("distil: 2.5669 nats against 2.6709 nats alone, even if you pretrain the teacher")


def test_what_leaves_the_fitted_range_is_named(plan: Callable[..., dict[str, Any]]) -> None:
    assert plan("--student", "198M", "--tokens", "20B")["warnings"] == []
    reading = plan("--student", "500M", "--loss", "2.3")["warnings"]
    assert [warning for warning in reading if "300T" in warning and "teacher_inference" in warning], reading
    warnings = plan("--student", "10B", "--flops", "1e20")["warnings"]
    for sentence in (
        r"student of 10B parameters: outside the fitted 143M to 7.75B",
        r"student tokens outside the fitted 4B to 512B, .*supervised 1\.53B",
        r"fewer than 2 tokens per parameter \(supervised, best_case",
        r"teacher loss outside the fitted 1.9 nats to 2.9 nats",
        r"more than the 300T tokens of text that exist \(.*teacher_inference",
    ):
        assert [warning for warning in warnings if re.search(sentence, warning)], (sentence, warnings)


def test_lines_say_what_the_json_says(limbeck: Callable[..., Any]) -> None:
    out = limbeck("plan", "--student", "300M", "--flops", "1e21").out
    for words, loss in (
        ("without a teacher", "2.3648"),
        ("teacher for nothing", "2.3486"),
        (r"\+ teacher inference", "2.3592"),
    ):
        assert re.search(rf"^{words} +{loss} ", out, flags=re.MULTILINE), out
    shares = re.search(r"^\+ both .* (\d+)/(\d+)/(\d+)$", out, flags=re.MULTILINE)
    assert shares is not None
    assert sum(map(int, shares.groups())) in (99, 100, 101)
    assert out.splitlines()[-1].startswith(("warning: ", "distil: "))


def test_a_student_alone_is_answered_with_its_crossovers(plan: Callable[..., dict[str, Any]]) -> None:
    crossing = plan("--student", "1B")["supervised_overtakes"]["best_case"]
    assert crossing["flops"] == pytest.approx(2.2e22, rel=0.01)
    assert crossing["supervised_tokens"] == pytest.approx(2.2e22 / (3 * 2.4544e9), rel=0.01)


def test_tokens_are_answered_with_the_best_teacher(plan: Callable[..., dict[str, Any]]) -> None:
    answer = plan("--student", "198M", "--tokens", 20 * 198e6)
    assert answer["best_teacher"]["teacher_loss_nats"] == pytest.approx(1.876, abs=2e-3)
    assert answer["best_teacher"]["loss_nats"] == pytest.approx(2.5340, abs=5e-4)
    assert answer["supervised"]["loss_nats"] == pytest.approx(2.7894, abs=5e-4)
    assert answer["weakest_useful_teacher_loss_nats"] == pytest.approx(2.75, abs=0.01)


def test_a_loss_is_answered_with_its_cost_and_ratios(plan: Callable[..., dict[str, Any]]) -> None:
    answer = plan("--student", "500M", "--loss", "2.4")
    ratios = [answer[name]["flops_over_supervised"] for name in SCENARIOS]
    assert ratios == pytest.approx([0.0103, 0.0905, 2.24, 2.85], rel=0.01)
    assert answer["teacher_pretraining_and_inference"]["tokens_over_supervised"] == pytest.approx(1.65, rel=0.01)
    assert plan("--student", "500M", "--loss", "1.5")["verdict"].startswith("out of reach")


def test_teachers_that_exist_are_ranked_by_the_student_and_priced(plan: Callable[..., dict[str, Any]]) -> None:
    answer = plan(
        "--student", "nano", "--tokens", "5B", "--teachers", "olmo3-7b, qwen3-30b-a3b,smollm2=2.0", "--device", "1e15"
    )
    students = [teacher["student_loss_nats"] for teacher in answer["teachers"]]
    assert students == sorted(students)
    olmo = next(teacher for teacher in answer["teachers"] if teacher["name"] == "Olmo-3-7B")
    per_token = 2 * (7_298_011_136 - 410_738_688) + 2 * 2048 * 32 * 4096  # over the student's 2,048 tokens
    assert olmo["flops_per_token"] == per_token
    assert olmo["hours"]["teacher_inference"] == pytest.approx(per_token * 5e9 / (0.4 * 1e15) / 3600, rel=1e-12)
    assert olmo["weights_bytes"]["bfloat16"] == 2 * 7_298_011_136
    assert olmo["store_bytes"]["dense"] == 4 * 100_278 * 5e9
    # The law of training alone, by hand: N of what a token touches outside both embeddings, D of its pretraining.
    n, d = 7_298_011_136 - 2 * 410_738_688, olmo["tokens"]
    assert olmo["loss_nats"] == pytest.approx(1.220 + (3355 / n**0.408 + 18186 / d**0.431) ** 0.452, rel=1e-12)
    measured = next(teacher for teacher in answer["teachers"] if teacher["loss_measured"])
    assert (measured["name"], measured["loss_nats"]) == ("SmolLM2-135M-Instruct", 2.0)
    equal = alone_by_hand(75_528_960, (per_token + 3 * answer["student"]["flops_per_token"]) * 5e9, answer)
    assert olmo["alone_at_equal_flops_nats"] == pytest.approx(equal, rel=1e-12)
    assert any("another vocabulary" in warning and "Qwen3-30B-A3B" in warning for warning in answer["warnings"])
    assert any("mixtures of experts" in warning for warning in answer["warnings"])


def test_a_teacher_that_no_such_device_holds_is_named(plan: Callable[..., dict[str, Any]]) -> None:
    """58 GB at 4 bits a parameter on cards of 24 GB."""
    question = ("--student", "1B", "--tokens", "5B", "--teachers", "gpt-oss-120b,smollm2", "--device", "rtx4090")
    sentence = "weights larger than the 24 GB of 1 x rtx4090 even in int4: gpt-oss-120b"
    assert sentence in plan(*question)["warnings"]
    assert not [warning for warning in plan(*question, "--devices", 3)["warnings"] if "weights larger" in warning]


def alone_by_hand(params: float, flops: float, answer: dict[str, Any]) -> float:
    tokens = flops / (3 * answer["student"]["flops_per_token"])
    return 1.220 + (3355 / params**0.408 + 18186 / tokens**0.431) ** 0.452


def test_a_config_file_is_a_teacher_like_any_other(
    plan: Callable[..., dict[str, Any]], limbeck: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "my-teacher"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "vocab_size": 32_768,
        "hidden_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
    }
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 2816, "tie_word_embeddings": True}))
    answer = plan("--student", "ladder-198m", "--tokens", "4B", "--teachers", f"{folder},smollm2")
    mine = next(teacher for teacher in answer["teachers"] if teacher["name"] == "my-teacher")
    params = 8 * (4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024) + 1024 + 32_768 * 1024
    assert mine["total_params"] == params
    assert mine["tokens"] == 20 * params
    assert mine["tokens_assumed"] is True
    assert "not public, 20 per active parameter assumed: my-teacher" in " ".join(answer["warnings"])
    assert re.search(
        r"my-teacher .* on [0-9.]+B\?", limbeck("plan", "--student", "1B", "--tokens", "4B", "--teachers", folder).out
    )


def test_the_catalogue_has_flops_and_chinchilla_budgets(
    plan: Callable[..., dict[str, Any]], limbeck: Callable[..., Any]
) -> None:
    teachers = {teacher["name"]: teacher for teacher in plan("teachers")["teachers"]}
    named = {"Olmo-3-7B", "Olmo-3-32B", "Qwen3-32B", "Qwen3-30B-A3B", "GLM-4.7-Flash", "gpt-oss-120b", "gpt-oss-20b"}
    assert named <= teachers.keys()
    qwen = teachers["Qwen3-30B-A3B"]
    head = 151_936 * 2048
    per_token = 2 * (3_353_032_704 - 2 * head) + 2 * head + 48 * 2 * 4096 * 32 * 128
    assert qwen["flops_per_token"] == per_token
    assert qwen["chinchilla_tokens"] == 20 * 3_353_032_704
    assert qwen["chinchilla_flops"] == pytest.approx(3 * per_token * 20 * 3_353_032_704, rel=1e-12)
    assert qwen["reading_flops"] == per_token * 5e9
    assert plan("teachers", "--context", 8192)["teachers"][3]["flops_per_token"] > per_token
    assert re.search(r"^gpt-oss-120b +117B +5\.71B .* not public", limbeck("plan", "teachers").out, flags=re.MULTILINE)


def test_cache_or_live_weighs_passes(plan: Callable[..., dict[str, Any]]) -> None:
    question = ("cache", "--teacher", "olmo3-7b", "--student", "nano", "--tokens", "5B", "--device", "h100")
    once, thrice = plan(*question), plan(*question, "--passes", "3")
    assert once["recommendation"] == "live"
    assert thrice["recommendation"] == "cache"
    per_token = 2 * (7_298_011_136 - 410_738_688) + 2 * 2048 * 32 * 4096
    assert thrice["live_flops"] - thrice["cached_flops"] == pytest.approx(2 * per_token * 5e9, rel=1e-9)
    slow = plan(*question, "--passes", "3", "--read-speed", "1K")
    assert (slow["recommendation"], slow["break_even_passes"]) == ("live", None)
    assert "storing never pays" in slow["verdict"]


def test_the_student_is_a_number_a_member_or_a_recipe(plan: Callable[..., dict[str, Any]], values: Any, tmp_path: Path) -> None:
    assert plan("--student", "3e8", "--loss", "2.5")["student"]["params"] == 3e8
    assert plan("--student", "ladder-103m", "--loss", "3")["student"]["flops_per_token"] == pytest.approx(3.411e8, rel=2e-4)
    assert plan("--student", "nano", "--loss", "3")["student"]["params"] == 75_528_960
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({**values, "student": {**values["student"], "vocab_size": 300}}))
    assert plan("--student", mine, "--loss", "5")["student"]["name"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), r"name a student: limbeck plan --student"),
        (("--student", "1X"), r"--student=1X is no number, family member, recipe or file"),
        (("--student", "nan0"), r"did you mean 'nano'\?"),
        (("--student", "-1B"), r"--student=-1B: must be at least 1000"),
        (("--student", "quickstart"), r"quickstart: student.vocab_size is not set"),
        (("--student", "missing.yaml"), r"missing.yaml does not exist"),
        (("--student", "1B", "--flops", "much"), r"--flops='much' is not an amount"),
        (("--student", "1B", "--flops", "nan"), r"--flops='nan' is not an amount"),
        (("--student", "1B", "--flops", "1e9"), r"1e\+09 FLOPs buy 0.14 tokens for 1B.*raise --flops"),
        (("--student", "1B", "--tokens", "0.5"), r"--tokens=0.5: must be at least 1"),
        (("--student", "1B", "--tokens", "1B", "--flops", "1e21"), r"--flops and --tokens are different questions"),
        (("--student", "1B", "--loss", "0"), r"--loss=0.0: a cross-entropy is a number of nats above zero"),
        (("--student", "1B", "--teachers", "olmo3-7b"), r"--teachers needs --tokens"),
        (("--student", "1B", "--tokens", "1B", "--teachers", "olmo4-7b"), r"'olmo4-7b' is neither.*did you mean 'Olmo-3-7B'\?"),
        (("--student", "1B", "--tokens", "1B", "--teachers", "smollm2=x"), r"--teachers smollm2='x' is not an amount"),
        (("--student", "1B", "--tokens", "1B", "--teachers", ","), r"--teachers is empty"),
        (("--student", "1B", "--tokens", "1B", "--teachers", "smollm2", "--device", "h1000"), r"did you mean 'h100'\?"),
        (("--student", "1B", "--tokens", "1B", "--teachers", "smollm2", "--utilisation", "40"), r"utilisation=40.0 is a share"),
        (("cache", "--teacher", "olmo3-7b", "--student", "1B", "--tokens", "1B", "--signal", "topk"), r"'topk-64'"),
        (
            ("cache", "--teacher", "olmo3-7b", "--student", "1B", "--tokens", "1B", "--passes", "0"),
            r"passes=0.0 must be more than 0",
        ),
        (("--student", "1B", "--flops", "1e21", "--law", "no.json"), r"no\.json"),
        (("--student", "1B", "teachers"), r"write --student behind teachers"),
        (("--student", "1B", "--flops", "1e21", "--device", "foo"), r"--device is for the hours of --teachers"),
        (("cache", "--teacher", "olmo3-7b", "--student", "1B", "--tokens", "1B", "--passes", "inf"), r"passes=inf must be"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_line(
    limbeck: Callable[..., Any], arguments: tuple[str, ...], complaint: str
) -> None:
    outcome = limbeck("plan", *arguments)
    assert outcome.code in (1, 2)
    assert re.search(complaint, outcome.complaint), outcome.complaint
