"""Traces and answers, by hand: as the templates of GPT-OSS and of models with think tags write them."""

import pytest

from limbeck.teach.answers import Answer, answer_of

HARMONY = "{{ '<|start|>' }}…<|channel|>"
THINK = "… <think> …"
ANALYSIS = "<|channel|>analysis<|message|>2 < 3, so"
FINAL = "<|start|>assistant<|channel|>final<|message|>Yes."


@pytest.mark.parametrize(
    ("template", "prompt", "written", "expected"),
    [
        ("plain", "", "<think>a</think>b", Answer("<think>a</think>b")),
        (HARMONY, "", f"{ANALYSIS}<|end|>{FINAL}", Answer("Yes.", "2 < 3, so")),
        (HARMONY, "", ANALYSIS, Answer("", "2 < 3, so")),
        (HARMONY, "", FINAL.removeprefix("<|start|>assistant"), Answer("Yes.")),
        (
            HARMONY,
            "",
            f"{ANALYSIS}<|end|><|start|>assistant<|channel|>commentary to=f <|constrain|>json<|message|>{{}}<|end|>{FINAL}",
            Answer("Yes.", "2 < 3, so"),
        ),
        (HARMONY, "", "<|channel|>fin", Answer("")),
        (HARMONY, "", "Yes.", Answer("Yes.")),
        (THINK, "user\nassistant\n", "<think>\nhm\nso\n</think>\n\nYes.\n", Answer("Yes.\n", "hm\nso")),
        (THINK, "assistant\n<think>\n", "hm\n</think>\n\nYes.", Answer("Yes.", "hm")),
        (THINK, "assistant\n<think>\n", "hm", Answer("", "hm")),
        (THINK, "assistant\n<think>\n\n</think>\n\n", "Yes.", Answer("Yes.")),
        (THINK, "assistant\n", "<think>\n\n</think>\n\nYes.", Answer("Yes.")),
    ],
)
def test_a_completion_falls_into_trace_and_answer(template: str, prompt: str, written: str, expected: Answer) -> None:
    assert answer_of(written, template=template, prompt=prompt) == expected
