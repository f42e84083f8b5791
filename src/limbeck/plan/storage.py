"""What teachers and their signals weigh in bytes, and whether a signal is better stored or computed again each time.

Signals: estimates of bytes per token, since what a row takes depends on the teacher and the text; and the size of a full
float32 distribution, the case that arXiv 2502.08606 reckons with. Weights: a format's bits per parameter.
Keys and values: what each layer remembers of a token while generating. Units are bytes, seconds, FLOPs; decimal prefixes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.errors import LimbeckError
from limbeck.plan.accounting import teacher_parameters
from limbeck.plan.config_sizes import head_dims, is_latent, kv_heads, layers, size, windows
from limbeck.spec.signal import (
    ChunksSignal,
    DenseSignal,
    HardSignal,
    HybridSignal,
    SampledSignal,
    Signal,
    TopKSignal,
    TopPSignal,
)

HEAD_SHARE, DRAWN_SHARE = 0.5, 0.6
"""Bits of a row's most probable ids, or of its drawn ones, over those of as many ids chosen evenly: some are likelier."""
COUNT_BITS = 1.5
"""Of how often an id was drawn."""
VALUE_BYTES = {"float16": 1.14, "uint8": 0.62}
"""Of a log-prob: less than its format, since each is coded by what it is expected to be."""
WEIGHT_BYTES = 0.9
"""Of an importance weight."""
TOP1_BYTES = 0.14
"""Of which id is the most probable, among drawn ones."""
ROW_BYTES = 3.0
"""Of a row's check, entropy, tail mass, and its part of the tables and the index.

All of these are from SmolLM2-135M on English prose (`benchmarks/codec.py`): within 8 % of what 16 signals took."""

CHUNKS_PER_TOKEN, CHUNK_BYTES = 0.8, 6.0
"""Of tokens, how many end a chunk (two byte-level vocabularies of like size on English prose), and the bytes of its three
log-probs, of which a tenth is saved, and its counts."""

WEIGHT_BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.0, "fp8": 8.0, "int4": 4.0, "mxfp4": 4.25}
"""Bits per parameter. mxfp4: 4 and a scale of 8 bits for every 32 (OCP Microscaling Formats 1.0); the scales of the integer
formats are left out, since their group size is a choice (128 is usual and adds 0.125 to 0.25)."""


def store_bytes_per_token(signal: Signal, *, vocab_size: int) -> float:
    """Bytes that a token's signal takes in a store: an estimate, from a teacher of 3 nats of entropy on English prose.

    Sharper teachers name fewer ids. `DenseSignal` is never stored: its size is that of V float32 numbers.
    """
    match signal:
        case TopKSignal(k=k, values=values):
            return ROW_BYTES + HEAD_SHARE * _even_bytes(k, vocab_size=vocab_size) + k * VALUE_BYTES[values]
        case TopPSignal(values=values):
            ids = _head_ids(signal)
            return ROW_BYTES + HEAD_SHARE * _even_bytes(ids, vocab_size=vocab_size) + ids * VALUE_BYTES[values]
        case SampledSignal():
            ids = _distinct_ids(_mean_draws(signal), temperature=signal.proposal_temperature)
            weights = ids * WEIGHT_BYTES if signal.proposal_temperature != 1 else 0.0
            drawn = _drawn_bytes(ids, vocab_size=vocab_size)
            return ROW_BYTES + drawn + weights + (TOP1_BYTES if signal.keep_top1 else 0)
        case HybridSignal(k=k, draws=draws, values=values):
            drawn = draws**0.96  # behind 12 ids hardly one is drawn twice: 14.6 of 16, 48 of 64
            head = HEAD_SHARE * _even_bytes(k, vocab_size=vocab_size) + k * VALUE_BYTES[values]
            return ROW_BYTES + head + _drawn_bytes(drawn, vocab_size=vocab_size)
        case HardSignal():
            return ROW_BYTES / 2 + HEAD_SHARE * _even_bytes(1, vocab_size=vocab_size)
        case ChunksSignal(distribution=distribution, k=k):
            ids = 0 if distribution == "none" else min(k, 257) if distribution == "bytes" else k
            even = _even_bytes(ids, vocab_size=257 if distribution == "bytes" else vocab_size)
            return ROW_BYTES + CHUNK_BYTES + CHUNKS_PER_TOKEN * (HEAD_SHARE * even + ids * VALUE_BYTES["float16"])
        case DenseSignal():
            return 4.0 * vocab_size


def _drawn_bytes(ids: float, *, vocab_size: int) -> float:
    """Bytes of so many drawn ids and how often each was drawn."""
    return DRAWN_SHARE * _even_bytes(ids, vocab_size=vocab_size) + ids * COUNT_BITS / 8


def _even_bytes(number: float, *, vocab_size: int) -> float:
    """Bytes of a set of so many ids chosen evenly: the log of how many such sets there are."""
    number = min(number, vocab_size)
    ways = math.lgamma(vocab_size + 1) - math.lgamma(number + 1) - math.lgamma(vocab_size - number + 1)
    return ways / math.log(2) / 8


def _distinct_ids(draws: float, *, temperature: float) -> float:
    """Of so many draws: 6.9 of 12, 19 of 50, 49 of 200, and 12.6 of 50 at 0.8, with SmolLM2-135M on English prose."""
    return min(draws, 19 * (draws / 50) ** 0.71 * temperature**1.85)


def _mean_draws(signal: SampledSignal) -> float:
    """Over positions: 0.78 of the way from `min_draws` to `draws` with SmolLM2-135M and 3 nats for all draws."""
    if signal.min_draws is None:
        return signal.draws
    return signal.min_draws + (signal.draws - signal.min_draws) * -math.expm1(-4.5 / signal.full_entropy_nats)


def _head_ids(signal: TopPSignal) -> float:
    """Ids that reach p, at most `cap` in a row: 31 for 0.8, 67 for 0.95, 86 for 0.99 of at most 100 with SmolLM2-135M."""
    uncapped = 10.5 * signal.p / (1 - signal.p)
    return max(1.0, signal.cap * uncapped / (signal.cap + uncapped))


def weight_bytes(config: Mapping[str, Any], *, bits: float = 16, expert_bits: float | None = None) -> float:
    """Bytes of a model's weights at `bits` per parameter (see `WEIGHT_BITS`), its routed experts at `expert_bits` if given.

    gpt-oss is published with `expert_bits=4.25` and the rest at 16. `config` and errors as in
    `limbeck.plan.accounting.teacher_parameters`; with `expert_bits` the type must be a known one.
    """
    total = teacher_parameters(config).total
    routed = sum(layer.routed for layer in layers(config)) if expert_bits is not None else 0
    return ((total - routed) * bits + routed * (expert_bits or 0)) / 8


def kv_cache_bytes_per_token(config: Mapping[str, Any], *, context: int, bits: float = 16) -> float:
    """Bytes of keys and values per token, averaged over a sequence of `context` tokens; times `context`, those of the sequence.

    Grouped attention remembers a key and a value for each of its key heads; latent attention one latent and the channels that
    carry the position, for all heads. A sliding layer remembers no more than its window.
    """
    if is_latent(config):
        channels = size(config, "kv_lora_rank") + size(config, "qk_rope_head_dim")
    else:
        channels = kv_heads(config) * sum(head_dims(config))
    remembered = sum(min(context, window or context) for window in windows(config))
    return remembered / context * channels * bits / 8


@dataclass(frozen=True)
class CacheOrLive:
    """The two ways of having a teacher's signal for the same training, side by side."""

    live_flops: float
    live_seconds: float
    cached_flops: float
    cached_seconds: float
    store_bytes: float
    break_even_passes: float
    """Above this many passes the store is quicker; infinite where reading a pass takes as long as live training of one."""
    recommendation: Literal["cache", "live"]


def cache_or_live(
    *,
    teacher_flops_per_token: float,
    training_flops_per_token: float,
    unique_tokens: float,
    passes: float,
    store_bytes_per_token: float,
    write_bytes_per_second: float,
    read_bytes_per_second: float,
    flops_per_second: float,
    overlapped: bool = True,
) -> CacheOrLive:
    """Whether to store the signal of `unique_tokens` tokens that training reads `passes` times, by the seconds either takes.

    `passes` counts every reading of the whole: epochs times students times restarts. `flops_per_second` is what the devices
    sustain (`limbeck.plan.devices.sustained_flops_per_second`), shared by teacher and student, one after the other. Live, the
    teacher scores every token of every pass. Cached, it scores each token once; then every pass trains from the store.
    `overlapped`: shards are written while the next are scored and read ahead while the student trains, so that a phase takes
    as long as the slower of the two; otherwise one waits for the other and the times add up.

    With T, S, W, R the seconds in which all unique tokens are scored, trained on, written and read, live takes passes (T + S),
    cached max(T, W) + passes max(S, R), so the store wins above max(T, W) / (T + S - max(S, R)) passes. That is 1 where the
    disk keeps up. A tie goes to live, which needs no room. Raises `LimbeckError` for amounts and rates that are not positive.
    """
    for name, amount in (
        ("unique_tokens", unique_tokens),
        ("passes", passes),
        ("write_bytes_per_second", write_bytes_per_second),
        ("read_bytes_per_second", read_bytes_per_second),
        ("flops_per_second", flops_per_second),
    ):
        if not (amount > 0 and (math.isfinite(amount) or name.endswith("per_second"))):
            raise LimbeckError(f"{name}={amount} must be more than 0 and finite")
    scoring_flops, training_flops = unique_tokens * teacher_flops_per_token, unique_tokens * training_flops_per_token
    scoring, training = scoring_flops / flops_per_second, training_flops / flops_per_second
    store_bytes = unique_tokens * store_bytes_per_token
    filling = _phase(scoring, store_bytes / write_bytes_per_second, overlapped=overlapped)
    cached_pass = _phase(training, store_bytes / read_bytes_per_second, overlapped=overlapped)
    live_pass = scoring + training
    live, cached = passes * live_pass, filling + passes * cached_pass
    return CacheOrLive(
        live_flops=passes * (scoring_flops + training_flops),
        live_seconds=live,
        cached_flops=scoring_flops + passes * training_flops,
        cached_seconds=cached,
        store_bytes=store_bytes,
        break_even_passes=filling / (live_pass - cached_pass) if cached_pass < live_pass else math.inf,
        recommendation="cache" if cached < live else "live",
    )


def _phase(computing: float, moving: float, *, overlapped: bool) -> float:
    """Seconds of a phase that computes and moves bytes."""
    return max(computing, moving) if overlapped else computing + moving
