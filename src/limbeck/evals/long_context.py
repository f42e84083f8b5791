"""RULER's tasks (arXiv:2404.06654) on prompts of given lengths: what a model finds in them, and whether it uses what it finds.

Generated answers are scored as RULER does, in percent. As small models generate nothing of use, the answer's likelihood is
measured beside: `gain_nats`, by how many nats per token the prompt with the needle makes it likelier than the same prompt
without (0: the needle is not used), and `answer_token_accuracy`, the share of its tokens that are the model's first choice.

For models with sliding windows, lengths up to the window and above it are averaged apart: only layers with full attention see
further at once.

What the model answers is written as it comes, and a killed evaluation continues from there. Legend: T positions, V vocabulary.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from limbeck.errors import LimbeckError, SpecError
from limbeck.eval_results import Metric
from limbeck.evals.chat import stop_ids
from limbeck.evals.dependence import subject_of
from limbeck.evals.generate import decoding_settings
from limbeck.evals.ruler import make, runs_out, score, tokens_to_generate
from limbeck.evals.ruler_material import read_material
from limbeck.evals.ruler_prompts import ESSAY_TASKS, ONE_NEEDLE, Material, Prompt
from limbeck.evals.subject import EvalModel
from limbeck.paths import write_atomically
from limbeck.progress import progress
from limbeck.report.statistics import ratio_estimate
from limbeck.spec.evals.decoding import Decoding
from limbeck.spec.evals.long_context import LongContext, RulerTask

LENGTHS = (1024, 2048, 4096)
EFFECTIVE_PERCENT = 85.6
"""RULER's threshold: what Llama-2-7B scores at 4,096 tokens."""
DEPTH_BINS = 5


def check(model: EvalModel, spec: LongContext) -> None:
    """What would stop `measure`, found before it: `LimbeckError` with the remedy."""
    lengths = _lengths(model, spec)
    if model.longest is not None and max(lengths) > model.longest:
        raise SpecError(f"long_context.lengths={max(lengths)}, but {model.name} reads {model.longest} tokens: take it out")
    if spec.chat and not model.tokenizer.backend.chat_template:
        raise SpecError(f"long_context.chat=true, but the tokenizer of {model.name} has no chat template: set it to false")
    material = _material(model, spec)
    for length in lengths:
        made = {task: _made(model, spec, material, task, length, 0, guess=0) for task in spec.tasks}
        sizes = {task: None if found is None else found[1] for task, found in made.items()}
        lacking = [task for task, size in sizes.items() if runs_out(task, size, material)]
        if lacking:
            raise SpecError(
                f"long_context.lengths={length}: too little text for {', '.join(lacking)}: name more as essays or qa_file, or "
                "set tasks without"
            )
        small = [task for task, size in sizes.items() if size is None]
        if small:
            raise SpecError(
                f"long_context.lengths={length} is too short for {', '.join(small)} with the tokenizer of {model.name}: set "
                "lengths or tasks without"
            )


def measure(
    model: EvalModel, spec: LongContext, *, generations: Path | None = None
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """`<task>/<length>/<measure>` and averages. `generations` is the file that keeps the answers."""
    lengths, material = _lengths(model, spec), _material(model, spec)
    records: list[dict[str, Any]] = []
    total = len(lengths) * len(spec.tasks) * spec.samples
    with _kept(generations, _identity(model, spec)) as (there, file), progress("long context", total=total) as advance:
        for length in lengths:
            for task in spec.tasks:
                size = 0
                for index in range(spec.samples):
                    record = there.get((task, length, index))
                    if record is None:
                        made = _made(model, spec, material, task, length, index, guess=size)
                        if made is None:
                            raise LimbeckError(f"long_context: {length} tokens are too short for sample {index} of {task}")
                        prompt, size = made
                        record = {"task": task, "length": length, "index": index, **_answered(model, spec, task, prompt)}
                        _write(file, record)
                    records.append(record)
                    advance(1, f"{task}, {length} tokens")
    return _metrics(records, spec, lengths, window=sliding_window(model.reader.model.config)), _details(records, model)


def sliding_window(config: Any) -> int | None:
    """The shortest window of a model's sliding layers; None where every layer sees everything."""
    layout = getattr(config, "layout", None)  # of a student of our own class
    if layout is not None:
        return min((layer.attention.window for layer in layout.layers if layer.attention.window is not None), default=None)
    text = config.get_text_config()
    window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    return int(window) if window and slides else None


def _lengths(model: EvalModel, spec: LongContext) -> tuple[int, ...]:
    if spec.lengths is not None:
        return tuple(sorted(spec.lengths))
    usual = tuple(length for length in LENGTHS if model.longest is None or length <= model.longest)
    if not usual:
        raise SpecError(
            f"long_context: {model.name} reads {model.longest} tokens, and the shortest usual prompt has 512: set lengths"
        )
    return usual


def _material(model: EvalModel, spec: LongContext) -> Material:
    wants_essays = bool(ESSAY_TASKS & set(spec.tasks))
    essays = (spec.essays or model.require_heldout(spec.kind)) if wants_essays else None
    return read_material(spec.tasks, longest=max(_lengths(model, spec)), essays=essays, qa_file=spec.qa_file)


def _made(
    model: EvalModel, spec: LongContext, material: Material, task: RulerTask, length: int, index: int, *, guess: int
) -> tuple[Prompt, int] | None:
    """One sample and its units of haystack; None where the length holds not even the question."""

    def count(text: str) -> int:
        return len(_ids(model, spec, text, ""))

    return make(task, length, index, seed=spec.seed, material=material, count=count, guess=guess)


def _ids(model: EvalModel, spec: LongContext, question: str, answer: str) -> list[int]:
    """Tokens of a prompt and what it is answered so far; with the tokenizer's start, or as its chat template says."""
    backend = model.tokenizer.backend
    if not spec.chat:
        return [model.tokenizer.start_id, *_encode(backend, question + answer)]
    turn = [{"role": "user", "content": question}]
    asked = backend.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return _encode(backend, asked + answer.lstrip())


def _encode(backend: Any, text: str) -> list[int]:
    ids: list[int] = backend(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return ids


def _answered(model: EvalModel, spec: LongContext, task: RulerTask, prompt: Prompt) -> dict[str, Any]:
    """What the model says to a prompt, unscored but for likelihoods."""
    ids = _ids(model, spec, prompt.text, prompt.prefix)
    found: dict[str, Any] = {"tokens": len(ids), "depths": prompt.depths, "answers": prompt.answers, "any": prompt.any_answer}
    if spec.generate:
        found["output"] = _generate(model, ids, tokens=tokens_to_generate(task))
    if spec.likelihood:
        nats, accuracy = _answer_nats(model, spec, prompt, prompt.text)
        without, _ = _answer_nats(model, spec, prompt, prompt.without)
        found |= {"nats": nats, "nats_without": without, "answer_token_accuracy": accuracy}
    return found


@torch.no_grad()
def _generate(model: EvalModel, ids: Sequence[int], *, tokens: int) -> str:
    """Greedily, one prompt at a time: long prompts fill the machine, and need no padding."""
    network = model.reader.model
    ids_1T = torch.tensor([ids], device=model.reader.device)
    with decoding_settings(network, Decoding(max_new_tokens=tokens), stop_ids(model)):
        out_1T = network.generate(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
    return str(model.tokenizer.backend.decode(out_1T[0, len(ids) :], skip_special_tokens=True))


@torch.no_grad()
def _answer_nats(model: EvalModel, spec: LongContext, prompt: Prompt, question: str) -> tuple[float, float]:
    """Negative log-likelihood per token of the right answer after a question, and the share of its tokens that are likeliest.

    The answer's tokens are those by which question and answer differ from the question alone.
    """
    asked = _ids(model, spec, question, prompt.prefix)
    whole = _ids(model, spec, question, prompt.prefix + prompt.gold)
    first = next((place for place, (one, other) in enumerate(zip(asked, whole, strict=False)) if one != other), len(asked))
    answer_A = torch.tensor(whole[first:], device=model.reader.device)
    ids_1T = torch.tensor([whole], device=model.reader.device)
    out = model.reader.model(input_ids=ids_1T, use_cache=False, logits_to_keep=len(answer_A) + 1)
    logits_AV = out.logits[0, :-1].float()
    nats = float(torch.nn.functional.cross_entropy(logits_AV, answer_A))
    if not np.isfinite(nats):
        raise LimbeckError(f"long_context: the logits of {model.name} are not finite; train with a lower learning rate")
    return nats, float((logits_AV.argmax(-1) == answer_A).float().mean())


def _identity(model: EvalModel, spec: LongContext) -> dict[str, Any]:
    """Whose answers a file keeps, and to what."""
    read = model.heldout.model_dump(mode="json") if spec.essays is None and model.heldout is not None else None
    identity = {"spec": spec.model_dump(mode="json"), "texts": read, "model": model.reader.identity, "name": model.name}
    identity |= {"tokenizer": model.tokenizer.fingerprint, "files": subject_of(model, spec)["files"]}
    return {**identity, "stop_ids": stop_ids(model) if spec.generate else None}


@contextmanager
def _kept(path: Path | None, identity: Mapping[str, Any]) -> Iterator[tuple[dict[tuple[str, int, int], Any], TextIO | None]]:
    """The records that an earlier call wrote for the same model and spec, and the file to which more are appended."""
    if path is None:
        yield {}, None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps(identity) + "\n"
    there = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    whole = [f"{line}\n" for line in there.split("\n")[:-1]]  # a kill can leave half a line at the end, or half a letter
    kept = whole if whole[:1] == [header] else [header]
    if "".join(kept) != there:
        write_atomically(path, "".join(kept))
    records = [json.loads(line) for line in kept[1:]]
    with path.open("a", encoding="utf-8") as file:
        yield {(record["task"], record["length"], record["index"]): record for record in records}, file


def _write(file: TextIO | None, record: Mapping[str, Any]) -> None:
    if file is not None:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()


@dataclass(frozen=True)
class _Values:
    """The three measures of a set of records, one value a record."""

    by_measure: Mapping[str, Sequence[float]]

    def metrics(self, name: str) -> dict[str, Metric]:
        return {f"{name}/{measure}": _metric(values, measure) for measure, values in self.by_measure.items() if values}


def _values(records: Sequence[Mapping[str, Any]]) -> _Values:
    """Of every record what it has: not all evaluations generate, nor all measure likelihoods."""
    return _Values(
        {
            "percent": [_percent(record) for record in records if "output" in record],
            "gain_nats": [record["nats_without"] - record["nats"] for record in records if "nats" in record],
            "answer_token_accuracy": [record["answer_token_accuracy"] for record in records if "nats" in record],
        }
    )


def _percent(record: Mapping[str, Any]) -> float:
    return score(record["output"], answers=record["answers"], any_answer=record["any"])


def _metric(values: Sequence[float], measure: str) -> Metric:
    """The mean with its interval: Wilson's for shares, the bootstrap for nats."""
    if measure == "gain_nats":
        estimate = ratio_estimate(np.asarray(values), np.ones(len(values)))
        return Metric(estimate.value, estimate.low, estimate.high, len(values), "higher")
    unit = 100.0 if measure == "percent" else 1.0
    low, high = wilson(float(np.mean(values)) / unit, len(values))
    return Metric(float(np.mean(values)), unit * low, unit * high, len(values), "higher")


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a share; for means of values within [0, 1] it is at least as wide as it must be.

    Unlike the bootstrap it says something where all values are 0, or all 1.
    """
    z2 = 1.959964**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = float(np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2)))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _metrics(
    records: Sequence[Mapping[str, Any]], spec: LongContext, lengths: Sequence[int], *, window: int | None
) -> dict[str, Metric]:
    by_length = {length: [record for record in records if record["length"] == length] for length in lengths}
    metrics: dict[str, Metric] = {}
    for length, of_length in by_length.items():
        for task in spec.tasks:
            metrics |= _values([record for record in of_length if record["task"] == task]).metrics(f"{task}/{length}")
        metrics |= _values(of_length).metrics(f"average/{length}")
    if window is not None:
        metrics |= _values([record for record in records if record["length"] <= window]).metrics("below_window")
        metrics |= _values([record for record in records if record["length"] > window]).metrics("above_window")
    if spec.generate:
        passed = [length for length in lengths if metrics[f"average/{length}/percent"].value >= EFFECTIVE_PERCENT]
        metrics["effective_length_tokens"] = Metric(float(max(passed, default=0)), n=len(records), better="higher")
    return metrics


def _details(records: Sequence[Mapping[str, Any]], model: EvalModel) -> dict[str, Any]:
    """By depth of the needle, for the tasks that ask for one: a list of rows for each length."""
    binned: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record["task"] in ONE_NEEDLE:
            binned[record["length"], min(DEPTH_BINS - 1, int(record["depths"][0] * DEPTH_BINS))].append(record)
    rows = [
        {"length": length, "depth": [place / DEPTH_BINS, (place + 1) / DEPTH_BINS], "n": len(found), **_means(found)}
        for (length, place), found in sorted(binned.items())
    ]
    return {"by_depth": rows, "sliding_window": sliding_window(model.reader.model.config)}


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values = _values(records).by_measure
    return {measure: float(np.mean(found)) for measure, found in values.items() if found}
