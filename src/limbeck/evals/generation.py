"""Generation health: repetition, loops, lengths, how samples end, and whether stop tokens are expected where texts end."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.prepare import prepare_texts
from limbeck.errors import DataError
from limbeck.eval_results import Metric
from limbeck.evals.chat import require_template, stop_ids
from limbeck.evals.generate import Prompt, Sample, check_fits, decoded, generate, seconds_per_sample
from limbeck.evals.metrics import lengths, mean, quantile, share
from limbeck.evals.prompts import chat_tokens, prompts_of, read_chats
from limbeck.evals.quantisation import whole_text_ends
from limbeck.evals.repetition import Loop, compression_ratio, distinct, longest_loop, rep_w, seq_rep, terminal_loop
from limbeck.evals.stop_tokens import at_ends, read_stops
from limbeck.evals.subject import EvalModel
from limbeck.spec.evals.generation import Generation

OUTCOMES = ("empty", "stopped", "truncated_loop", "truncated_no_loop")
SHOWN = 200
"""Samples in the details; the file of generations has all."""


def check(model: EvalModel, spec: Generation) -> None:
    """`LimbeckError` where prompts cannot be read or do not fit, or chats have no template."""
    check_fits(model, prompts_of(model, spec), spec)
    if spec.end_chats is not None:
        _chats(model, Path(spec.end_chats))


def measure(model: EvalModel, spec: Generation, *, generations: Path | None = None) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics and details; the samples are kept in `generations`, and taken from there where they are."""
    prompts = prompts_of(model, spec)
    samples = generate(model, prompts, spec, path=generations)
    metrics, details = score(samples, loop_text=lambda tokens: decoded(model, tokens))
    metrics |= {"seconds_per_sample": Metric(seconds_per_sample(samples), n=len(samples), better="lower")}
    ends_metrics, ends_details = _stop_tokens(model, spec, prompts, samples)
    details |= {"batch_size": spec.batch_size, "max_new_tokens": spec.max_new_tokens, "stop_tokens": ends_details}
    return metrics | ends_metrics, details


def score(samples: Sequence[Sample], *, loop_text: Any) -> tuple[dict[str, Metric], dict[str, Any]]:
    """What is known from the samples alone; `loop_text` decodes tokens."""
    loops = [terminal_loop(sample.tokens) for sample in samples]
    outcomes = [outcome(sample, loop) for sample, loop in zip(samples, loops, strict=True)]
    anywhere = [longest_loop(sample.tokens) for sample in samples]
    tokens = [sample.tokens for sample in samples]
    metrics: dict[str, Metric] = {}
    for n in (1, 2, 3, 4):
        metrics[f"seq_rep_{n}"] = mean([seq_rep(each, n=n) for each in tokens], better="lower")
        metrics[f"distinct_{n}"] = Metric(distinct(tokens, n=n), n=len(samples), better="higher")
    ratios = [compression_ratio(sample.text) for sample in samples]
    metrics |= {
        "rep_w16": mean([rep_w(each, w=16) for each in tokens], better="lower"),
        "compression_ratio": mean(ratios, better="lower"),
        "compression_ratio_max": Metric(max(ratios), n=len(ratios), better="lower"),
        "loop_share": share(sum(loop is not None for loop in loops), len(loops), better="lower"),
        "loop_anywhere_share": share(sum(loop is not None for loop in anywhere), len(loops), better="lower"),
        **lengths([len(each) for each in tokens], of="output_tokens"),
        **shares_of(outcomes, OUTCOMES),
    }
    found = zip(samples, outcomes, loops, anywhere, strict=True)
    shown = [_shown(*each, loop_text=loop_text) for each in list(found)[:SHOWN]]
    return metrics, {"samples": shown, "outcomes": dict(Counter(outcomes))}


def outcome(sample: Sample, loop: Loop | None) -> str:
    """One of `OUTCOMES`."""
    if not sample.tokens:
        return "empty"
    if sample.stopped:
        return "stopped"
    return "truncated_loop" if loop is not None else "truncated_no_loop"


def shares_of(outcomes: Sequence[str], classes: Sequence[str]) -> dict[str, Metric]:
    """`share_<class>` of every class, with its interval; they add up to 1."""
    better = {"truncated_loop": "lower", "empty": "lower"}
    return {f"share_{each}": share(outcomes.count(each), len(outcomes), better=better.get(each)) for each in classes}  # type: ignore[arg-type]


def loop_record(loop: Loop | None, tokens: Sequence[int], *, loop_text: Any) -> dict[str, Any] | None:
    """A loop for reports: in tokens, and where it begins in the sample's text in characters."""
    if loop is None:
        return None
    return {
        "period": loop.period,
        "start": loop.start,
        "stop": loop.stop,
        "run": loop.run,
        "repeats": loop.repeats,
        "text": loop_text(tokens[loop.start : loop.start + loop.period]),
        "start_character": len(loop_text(tokens[: loop.start])),
        "stop_character": len(loop_text(tokens[: loop.stop])),
    }


def _shown(sample: Sample, kind: str, loop: Loop | None, anywhere: Loop | None, *, loop_text: Any) -> dict[str, Any]:
    return {
        "name": sample.name,
        "prompt": sample.prompt,
        "text": sample.text,
        "tokens": len(sample.tokens),
        "outcome": kind,
        "seq_rep_4": seq_rep(sample.tokens, n=4),
        "compression_ratio": compression_ratio(sample.text),
        "loop": loop_record(loop, sample.tokens, loop_text=loop_text),
        "longest_loop": loop_record(anywhere, sample.tokens, loop_text=loop_text),
    }


def _stop_tokens(
    model: EvalModel, spec: Generation, prompts: Sequence[Prompt], samples: Sequence[Sample]
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """At the ends of documents and chats, and along the samples that did not stop."""
    stops = stop_ids(model)
    metrics: dict[str, Metric] = {}
    details: dict[str, Any] = {"ids": {str(each): decoded(model, [each]) for each in stops}}
    texts = {"documents": _documents(model, spec)}
    texts |= {"chats": _chats(model, Path(spec.end_chats))} if spec.end_chats is not None else {}
    for name, rows in texts.items():
        if rows:
            found, details[name] = _at_ends(model, rows, stops)
            metrics |= {key if name == "documents" else f"{key}_chats": metric for key, metric in found.items()}
    on = [np.concatenate([p.tokens, s.tokens]) for p, s in zip(prompts, samples, strict=True) if not s.stopped]
    begins = [len(p.tokens) - 1 for p, s in zip(prompts, samples, strict=True) if not s.stopped]
    if on:
        readings = read_stops(model.reader, on, stops)
        highest = [float(reading.mass_R[begin:].max()) for reading, begin in zip(readings, begins, strict=True)]
        metrics["truncated_stop_mass_max"] = mean(highest, better="higher")
    return metrics, details


def _at_ends(
    model: EvalModel, rows: Sequence[NDArray[np.int64]], stops: Sequence[int]
) -> tuple[dict[str, Metric], dict[str, Any]]:
    ends = at_ends(model.reader, rows, stops)
    metrics = {
        "end_log_prob_nats": mean(ends.log_mass_nats, better="higher"),
        "end_rank_median": quantile(ends.best_rank, 0.5, better="lower"),
        "end_first_share": share(sum(rank == 1 for rank in ends.best_rank), len(rows), better="higher"),
        "false_stop_mass": Metric(ends.false_stop_mass, n=ends.other_rows, better="lower"),
    }
    by_id = {
        str(each): {
            # A stop token can be ruled out (-inf), which JSON cannot say.
            "log_prob_nats": ends.log_prob_by_id[each] if math.isfinite(ends.log_prob_by_id[each]) else None,
            "median_rank": ends.median_rank_by_id[each],
        }
        for each in stops
    }
    return metrics, {"texts": len(rows), "by_id": by_id}


def _documents(model: EvalModel, spec: Generation) -> list[NDArray[np.int64]]:
    """The last tokens of held-out documents at whose ends a text really ends."""
    if not spec.end_documents or model.heldout is None:
        return []
    store = prepare_texts(model.heldout, model.tokenizer, title="held-out", loss_on=model.loss_on)
    whole = whole_text_ends(model.heldout)
    read = min(spec.end_tokens, model.longest or spec.end_tokens)
    chosen = [index for index in sorted(range(len(store)), key=lambda index: store.ids[index]) if store.ids[index] in whole]
    return [store.document(index)[-read:].astype(np.int64) for index in chosen[: spec.end_documents]]


def _chats(model: EvalModel, path: Path) -> list[NDArray[np.int64]]:
    """Chats up to the token that ends the last answer; `DataError` where one has none."""
    require_template(model.tokenizer, remedy="leave end_chats out")
    stops, longest, found = stop_ids(model), model.window(None), []
    for name, messages in read_chats(path):
        tokens = chat_tokens(model, messages, answers=False)
        ends = np.flatnonzero(np.isin(tokens, stops))
        if messages[-1]["role"] != "assistant" or not len(ends) or ends[-1] == 0:
            raise DataError(
                f"{name}: the last message is not the assistant's, or the chat template puts no stop token after it"
            )
        found.append(tokens[: ends[-1] + 1][-longest:])
    if not found:
        raise DataError(f"{path} holds no chat")
    return found
