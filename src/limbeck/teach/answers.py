"""What an assistant wrote, as an answer and the trace before it, told apart by the marks that its template speaks in.

Known are harmony's channels (GPT-OSS: https://github.com/openai/harmony), of which `analysis` is the trace and `final` the
answer, and `<think>…</think>` (DeepSeek-R1, Qwen3, OLMo 3 Think, SmolLM3). Other templates have no traces.
"""

import re
from dataclasses import dataclass

HARMONY = "<|channel|>"
THINK, END_THINK = "<think>", "</think>"
_MESSAGE = re.compile(r"<\|channel\|>(\w+).*?<\|message\|>(.*?)(?=<\|(?:end|call|start|channel|return)\|>|\Z)", re.S)


@dataclass(frozen=True)
class Answer:
    """What is kept of a completion."""

    content: str
    thinking: str | None = None
    """None: the template has no traces, or this one had none."""


def answer_of(written: str, *, template: str, prompt: str) -> Answer:
    """Of the text of a completion, special tokens shown, without its stop token; `prompt` is the rendered text before it."""
    if HARMONY in template:
        return _of_channels(written)
    if THINK in template:
        return _of_tags(written, begun=prompt.rstrip().endswith(THINK))
    return Answer(written)


def _of_channels(written: str) -> Answer:
    """A completion goes on from `<|start|>assistant`."""
    parts = _MESSAGE.findall(written)
    if not parts:
        return Answer("" if HARMONY in written else written)
    trace = "\n".join(text for channel, text in parts if channel == "analysis")
    return Answer("\n".join(text for channel, text in parts if channel == "final"), trace or None)


def _of_tags(written: str, *, begun: bool) -> Answer:
    """`begun`: the template itself has opened the trace. A trace that is not closed has no answer."""
    opened = written.lstrip().removeprefix(THINK) if written.lstrip().startswith(THINK) else None
    inside = opened if opened is not None else written if begun else None
    if inside is None:
        return Answer(written)
    trace, closed, content = inside.partition(END_THINK)
    return Answer(content.lstrip("\n") if closed else "", trace.strip("\n").strip() or None)
