"""Latency: how long a model takes until the first token of a prompt's answer, and for each token after it.

Prefill reads one prompt and makes the logits of its last position. Decoding writes greedily, token by token, with keys and
values remembered, as any loop around the model would; `generate`'s own bookkeeping isn't in it. Tokens are drawn at random,
which matters to experts alone. Seconds depend on everything that the machine does; the median of the repeats is reported, and
their 90th percentile beside it. Suffixes: B rows, T positions.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError, SpecError
from limbeck.eval_results import Metric
from limbeck.evals.generate import synchronise
from limbeck.evals.subject import EvalModel
from limbeck.plan.kv_cache import RememberedLayer, kv_bytes, kv_bytes_per_late_token, kv_bytes_per_token, of_config, of_layout
from limbeck.progress import progress
from limbeck.spec.evals.latency import Latency

SEED = 0


@dataclass(frozen=True)
class Timing:
    """Of one shape of input."""

    batch_size: int
    tokens: int
    """Of the prompt, or of what had been read where writing began."""
    median_ms: float
    p90_ms: float
    repeats: int
    peak_memory_bytes: int | None
    """Of the CUDA device, weights included; None elsewhere."""


def check(model: EvalModel, spec: Latency) -> None:
    """`SpecError` where a text is longer than the model reads."""
    written = spec.context_tokens + spec.decode_tokens * (spec.warmups + spec.repeats)
    asked = {f"prompt_tokens={max(spec.prompt_tokens)}": max(spec.prompt_tokens)}
    asked[f"context_tokens={spec.context_tokens} and {written - spec.context_tokens} tokens written after it"] = written
    for what, tokens in asked.items():
        if model.longest is not None and tokens > model.longest:
            raise SpecError(f"{model.name} reads {model.longest} tokens, and {what} are more: lower prompt_tokens or repeats")


def measure(model: EvalModel, spec: Latency) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics and details."""
    metrics: dict[str, Metric] = {}
    prefill, decode = [], []
    with progress(f"{model.name} against the clock", total=len(spec.prompt_tokens) + len(spec.batch_sizes)) as advance:
        for tokens in spec.prompt_tokens:
            prefill.append(time_prefill(model, spec, tokens=tokens))
            metrics |= _metrics(f"prefill_{tokens}", prefill[-1])
            advance(1, f"prompts of {tokens} tokens")
        for batch_size in spec.batch_sizes:
            decode.append(time_decode(model, spec, batch_size=batch_size))
            metrics |= _metrics(f"decode_batch_{batch_size}", decode[-1])
            advance(1, f"{batch_size} at once")
    layers, bytes_per_number = remembered(model), model.reader.dtype.itemsize
    metrics["kv_bytes_per_token"] = Metric(kv_bytes_per_token(layers, bytes_per_number=bytes_per_number), better="lower")
    details = {
        "prefill": [asdict(each) for each in prefill],
        "decode": [asdict(each) for each in decode],
        "kv_bytes": {
            str(tokens): kv_bytes(layers, tokens=tokens, bytes_per_number=bytes_per_number) for tokens in spec.prompt_tokens
        },
        "kv_bytes_per_late_token": kv_bytes_per_late_token(layers, bytes_per_number=bytes_per_number),
        "dtype": str(model.reader.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.reader.model.parameters()),
    }
    return metrics, details


def time_prefill(model: EvalModel, spec: Latency, *, tokens: int) -> Timing:
    """One prompt of so many tokens, up to the logits after it."""
    token_BT = _drawn(model, rows=1, tokens=tokens)

    def read() -> None:
        model.reader.model(input_ids=token_BT, use_cache=True, logits_to_keep=1)

    return _timed(model, spec, read, batch_size=1, tokens=tokens, per_call=1)


def time_decode(model: EvalModel, spec: Latency, *, batch_size: int) -> Timing:
    """A token of each of so many texts, after `context_tokens`."""
    with _memory_is_enough(batch_size), torch.no_grad():
        begun = model.reader.model(
            input_ids=_drawn(model, rows=batch_size, tokens=spec.context_tokens), use_cache=True, logits_to_keep=1
        )
    state = {"cache": begun.past_key_values, "last_B1": begun.logits[:, -1:].argmax(-1)}

    def write() -> None:
        for _ in range(spec.decode_tokens):
            found = model.reader.model(input_ids=state["last_B1"], past_key_values=state["cache"], use_cache=True)
            state.update(cache=found.past_key_values, last_B1=found.logits[:, -1:].argmax(-1))

    return _timed(model, spec, write, batch_size=batch_size, tokens=spec.context_tokens, per_call=spec.decode_tokens)


def remembered(model: EvalModel) -> tuple[RememberedLayer, ...]:
    """What each layer keeps of a token: from our own students' layout, from the others' configuration."""
    config = model.reader.model.config
    if config.model_type == "limbeck":
        return of_layout(config.layout)
    return of_config(config.get_text_config().to_dict())


def _timed(model: EvalModel, spec: Latency, work: Callable[[], None], *, batch_size: int, tokens: int, per_call: int) -> Timing:
    """Warmed up, then each repeat by itself, waiting for the device before and after."""
    device = model.reader.device
    seconds = []
    with _memory_is_enough(batch_size), torch.no_grad():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(spec.warmups + spec.repeats):
            synchronise(device)
            begun = time.perf_counter()
            work()
            synchronise(device)
            seconds.append((time.perf_counter() - begun) / per_call)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    median, p90 = (1e3 * float(np.quantile(seconds[spec.warmups :], at)) for at in (0.5, 0.9))
    return Timing(batch_size, tokens, median, p90, spec.repeats, peak)


@contextmanager
def _memory_is_enough(batch_size: int) -> Iterator[None]:
    """A clear sentence where it is not."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LimbeckError(f"{batch_size} texts at once don't fit into memory: leave that batch size or length out") from error


def _drawn(model: EvalModel, *, rows: int, tokens: int) -> Tensor:
    """Random ids [B, T]."""
    generator = torch.Generator().manual_seed(SEED)
    token_BT = torch.randint(min(model.reader.vocab_size, model.tokenizer.size), (rows, tokens), generator=generator)
    return token_BT.to(model.reader.device)


def _metrics(name: str, timing: Timing) -> dict[str, Metric]:
    found = {
        f"{name}_ms": Metric(timing.median_ms, n=timing.repeats, better="lower"),
        f"{name}_p90_ms": Metric(timing.p90_ms, n=timing.repeats, better="lower"),
    }
    if timing.peak_memory_bytes is not None:
        found[f"{name}_peak_memory_bytes"] = Metric(float(timing.peak_memory_bytes), better="lower")
    return found
