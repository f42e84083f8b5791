"""What `limbeck plan` answers about teachers that exist, as plain values for machines: one function a question."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from limbeck.errors import SpecError
from limbeck.plan.accounting import TRAINING_OVER_FORWARD, teacher_flops_per_token, teacher_parameters
from limbeck.plan.allocate import Alone, Distilled, Size, loss_alone
from limbeck.plan.answers import about
from limbeck.plan.choose import CHINCHILLA_TOKENS_PER_PARAMETER, STORED_SIGNALS, Candidate, candidates, choice, doubts, known
from limbeck.plan.devices import Device, hours, sustained_flops_per_second
from limbeck.plan.laws import Laws
from limbeck.plan.storage import cache_or_live, store_bytes_per_token
from limbeck.plan.teachers import catalogue, resolve
from limbeck.plan.verdict import mistrust
from limbeck.spec.base import nearest


def of_teachers(
    student: Size, *, tokens: float, names: str, laws: Laws, device: Device, utilisation: float, count: int = 1
) -> dict[str, Any]:
    """What a student would reach on so many tokens with each of the teachers that exist, and what each costs."""
    teachers = known(names)
    ranked = candidates(teachers, student=student, tokens=tokens, laws=laws)
    by_itself = Alone(loss_alone(student.params, tokens, laws=laws), tokens)
    training_flops = student.training_flops_per_token * tokens

    def lasting(flops: float) -> float:
        return hours(flops, device=device, utilisation=utilisation, count=count)

    results = {
        candidate.name: Distilled(
            candidate.student_loss_nats, tokens, candidate.active_params, candidate.tokens, candidate.loss_nats, candidate.flops
        )
        for candidate in ranked
    }
    return {
        **about(student, laws),
        "tokens": tokens,
        "device": {
            "name": device.name,
            "flops_per_second": device.flops_per_second,
            "memory_bytes": device.memory_bytes,
            "utilisation": utilisation,
            "count": count,
        },
        "supervised": {**asdict(by_itself), "flops": training_flops, "hours": lasting(training_flops)},
        "teachers": [
            {**asdict(candidate), "hours": {part: lasting(flops) for part, flops in asdict(candidate.flops).items()}}
            for candidate in ranked
        ],
        "verdict": choice(ranked, alone_nats=by_itself.loss_nats),
        "warnings": [
            *mistrust(student, {"supervised": by_itself, **results}, fitted=laws.fitted),
            *doubts(teachers, student=student),
            *_too_large(ranked, device=device, count=count),
        ],
    }


def _too_large(ranked: Sequence[Candidate], *, device: Device, count: int) -> Iterator[str]:
    memory = (device.memory_bytes or math.inf) * count
    large = [candidate.name for candidate in ranked if min(candidate.weights_bytes.values()) > memory]
    if large:
        yield f"weights larger than the {memory / 1e9:.0f} GB of {count} x {device.name} even in int4: {', '.join(large)}"


def of_catalogue(*, context: float, tokens: float) -> dict[str, Any]:
    """Every teacher of the catalogue: sizes, FLOPs per token over `context` tokens, what its training and its reading cost."""
    return {
        "context": context,
        "tokens": tokens,
        "teachers": [_catalogued(name, entry, context=context, tokens=tokens) for name, entry in catalogue().items()],
    }


def _catalogued(name: str, entry: Mapping[str, Any], *, context: float, tokens: float) -> dict[str, Any]:
    params, per_token = teacher_parameters(entry), teacher_flops_per_token(entry, context=context)
    chinchilla, read = CHINCHILLA_TOKENS_PER_PARAMETER * params.active, entry["pretraining_tokens"]
    training = TRAINING_OVER_FORWARD * per_token
    return {
        "name": name,
        "total_params": params.total,
        "active_params": params.active,
        "flops_per_token": per_token,
        "chinchilla_tokens": chinchilla,
        "chinchilla_flops": training * chinchilla,
        "pretraining_tokens": read,
        "pretraining_flops": training * read if read is not None else None,
        "reading_flops": per_token * tokens,
    }


def of_cache(
    student: Size,
    *,
    teacher: str,
    tokens: float,
    passes: float,
    signal: str,
    read_bytes_per_second: float,
    write_bytes_per_second: float,
    device: Device,
    utilisation: float,
    count: int = 1,
) -> dict[str, Any]:
    """Whether to store a teacher's signal or to run it live: the seconds, FLOPs and bytes of both."""
    if signal not in STORED_SIGNALS:
        raise SpecError(f"--signal={signal} is not a stored signal that is priced here{nearest(signal, list(STORED_SIGNALS))}")
    name, config = resolve(teacher)
    result = cache_or_live(
        teacher_flops_per_token=teacher_flops_per_token(config, context=student.context),
        training_flops_per_token=student.training_flops_per_token,
        unique_tokens=tokens,
        passes=passes,
        store_bytes_per_token=store_bytes_per_token(STORED_SIGNALS[signal], vocab_size=int(config["vocab_size"])),
        write_bytes_per_second=write_bytes_per_second,
        read_bytes_per_second=read_bytes_per_second,
        flops_per_second=sustained_flops_per_second(device, utilisation=utilisation, count=count),
    )
    cached, live = (seconds / 3600 for seconds in (result.cached_seconds, result.live_seconds))
    spent = f"{cached:.3g} hours and {result.store_bytes / 1e9:.3g} GB stored, {live:.3g} hours live"
    pays = math.isfinite(result.break_even_passes)
    edge = f"storing pays above {result.break_even_passes:.3g} passes" if pays else "storing never pays: reading is too slow"
    return {
        "teacher": name,
        "student": student.name,
        "signal": signal,
        "passes": passes,
        **asdict(result),
        "break_even_passes": result.break_even_passes if pays else None,
        "verdict": f"{result.recommendation}: {spent}; {edge}, you have {passes:g}",
    }
