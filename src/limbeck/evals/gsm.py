"""Word problems: how many a model solves, with how many tokens, and how its attempts end.

Strict accuracy reads the number after `The answer is` (or `####`), flexible accuracy the last number anywhere; both are
reported because strict alone understates a model that solves a problem and says so otherwise. Small models are at the floor of
either: for those there are the nats of the right answer after the right reasoning. Problems are told apart by their names, so
two models can be compared problem by problem.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import DataError, LimbeckError, SpecError
from limbeck.eval_results import Metric
from limbeck.evals.answer_nats import continuation_nats
from limbeck.evals.chat import chat_text, document_tokens, plain_tokens, require_template
from limbeck.evals.generate import Prompt, Sample, check_fits, decoded, generate, seconds_per_sample
from limbeck.evals.generation import loop_record, shares_of
from limbeck.evals.gsm_problems import EXAMPLES, Problem, flexible_answer, read_problems, strict_answer
from limbeck.evals.metrics import lengths, mean, share
from limbeck.evals.repetition import terminal_loop
from limbeck.evals.subject import EvalModel
from limbeck.spec.evals.gsm import Gsm

OUTCOMES = ("empty", "stopped_correct", "stopped_wrong", "stopped_no_answer", "truncated_loop", "truncated_no_loop")
INSTRUCTION = "Reason step by step. Then end with the sentence: The answer is N. (with your number in place of N)"
"""Without a number: small models copy one."""
NEXT_QUESTION = "\nQ:"
"""Where a model that was shown examples begins the next one by itself."""


def check(model: EvalModel, spec: Gsm) -> None:
    """`LimbeckError` where problems cannot be read or do not fit, or a chat has no template."""
    problems, shots = problems_of(spec)
    prompts = [prompt_of(model, problem, spec, shots=shots) for problem in problems]
    check_fits(model, prompts, spec)
    if spec.answer_nats and model.longest is not None:
        for problem, prompt in zip(problems, prompts, strict=True):
            needed = sum(map(len, _answered(model, problem, prompt, spec))) - 1  # nothing is predicted after the last
            if needed > model.longest:
                raise SpecError(
                    f"{model.name} reads {model.longest} tokens; {problem.name} has {needed} with its reasoning and answer: "
                    "set gsm.answer_nats=false, fewer gsm.shots or other problems"
                )


def measure(model: EvalModel, spec: Gsm, *, generations: Path | None = None) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics and details; the samples are kept in `generations`, and taken from there where they are."""
    problems, shots = problems_of(spec)
    prompts = [prompt_of(model, problem, spec, shots=shots) for problem in problems]
    stop_strings = (NEXT_QUESTION,) if spec.format == "shots" else ()
    samples = generate(model, prompts, spec, path=generations, stop_strings=stop_strings)
    metrics, details = score(problems, samples, loop_text=lambda tokens: decoded(model, tokens))
    if spec.answer_nats:
        rows = [_answered(model, problem, prompt, spec) for problem, prompt in zip(problems, prompts, strict=True)]
        nats = continuation_nats(model.reader, rows)
        if not np.isfinite(nats).all():
            raise LimbeckError(
                f"gsm: answer_nats is not finite: the logits of {model.name} are not, or rule the answer out; "
                "set gsm.answer_nats=false"
            )
        metrics["answer_nats"] = mean(nats, better="lower")
        for record, value in zip(details["problems"], nats, strict=True):
            record["answer_nats"] = value
    return metrics, details | {"batch_size": spec.batch_size, "max_new_tokens": spec.max_new_tokens}


def score(
    problems: Sequence[Problem], samples: Sequence[Sample], *, loop_text: Any
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """What is known from the samples alone, problem by problem; `loop_text` decodes tokens."""
    records = [_record(*each, loop_text=loop_text) for each in zip(problems, samples, strict=True)]
    outcomes = [record["outcome"] for record in records]
    metrics = {
        "accuracy_strict": share(sum(record["strict"] for record in records), len(records), better="higher"),
        "accuracy_flexible": share(sum(record["flexible"] for record in records), len(records), better="higher"),
        **lengths([record["tokens"] for record in records], of="output_tokens"),
        "seconds_per_problem": Metric(seconds_per_sample(samples), n=len(samples), better="lower"),
        **shares_of(outcomes, OUTCOMES),
    }
    return metrics, {"problems": records, "outcomes": dict(Counter(outcomes))}


def problems_of(spec: Gsm) -> tuple[list[Problem], Sequence[Problem]]:
    """The problems that are asked, and the worked examples before each."""
    problems, shots = read_problems(Path(spec.path)), _shots(spec)
    shown = {shot.question for shot in shots}
    asked = [problem for problem in problems if problem.question not in shown][: spec.num_problems]
    if not asked:
        raise DataError(f"{spec.path}: every problem is one of the {len(shots)} examples: lower shots, or name other problems")
    return asked, shots


def prompt_of(model: EvalModel, problem: Problem, spec: Gsm, *, shots: Sequence[Problem]) -> Prompt:
    """What the model is given."""
    if spec.format == "chat":
        require_template(model.tokenizer, remedy="set format=shots")
        messages = [{"role": "user", "content": f"{problem.question}\n\n{INSTRUCTION}"}]
        tokens = plain_tokens(model.tokenizer, chat_text(model.tokenizer, messages, answers=True))
        return Prompt(problem.name, problem.question, tokens)
    worked = "".join(f"Q: {each.question}\nA: {_worked(each)} {each.answer}.\n\n" for each in shots)
    return Prompt(problem.name, problem.question, document_tokens(model.tokenizer, f"{worked}Q: {problem.question}\nA:"))


def _shots(spec: Gsm) -> Sequence[Problem]:
    if spec.format == "chat":
        return ()
    there = EXAMPLES if spec.shots_path is None else read_problems(Path(spec.shots_path))
    if spec.shots > len(there):
        where = "examples of Limbeck's own: set shots_path" if spec.shots_path is None else f"problems in {spec.shots_path}"
        raise DataError(f"shots={spec.shots} is more than the {len(there)} {where}")
    return there[: spec.shots]


def _worked(problem: Problem) -> str:
    """The reasoning, up to the number that is the answer."""
    return f"{problem.reasoning} The answer is".lstrip()


def _answered(model: EvalModel, problem: Problem, prompt: Prompt, spec: Gsm) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before the right answer, and those of the answer: the prompt, the reasoning, then ` 42.`."""
    spoken = f"{' ' if spec.format == 'shots' else ''}{_worked(problem)}"
    before = plain_tokens(model.tokenizer, spoken)
    both = plain_tokens(model.tokenizer, f"{spoken} {problem.answer}.")
    shorter = min(len(before), len(both))
    same = int(np.argmin(np.append(before[:shorter] == both[:shorter], False)))
    return np.concatenate([prompt.tokens, both[:same]]), both[same:]


def _record(problem: Problem, sample: Sample, *, loop_text: Any) -> dict[str, Any]:
    strict, flexible = strict_answer(sample.text), flexible_answer(sample.text)
    loop = terminal_loop(sample.tokens)
    given = strict if strict is not None else flexible
    if not sample.tokens:
        kind = "empty"
    elif sample.stopped:
        kind = "stopped_no_answer" if given is None else "stopped_correct" if given == problem.answer else "stopped_wrong"
    else:
        kind = "truncated_loop" if loop is not None else "truncated_no_loop"
    return {
        "name": problem.name,
        "question": problem.question,
        "gold": problem.answer,
        "answer_strict": strict,
        "answer_flexible": flexible,
        "strict": strict == problem.answer,
        "flexible": flexible == problem.answer,
        "outcome": kind,
        "tokens": len(sample.tokens),
        "seconds": sample.batch_seconds / sample.batch_rows,
        "text": sample.text,
        "loop": loop_record(loop, sample.tokens, loop_text=loop_text),
    }
