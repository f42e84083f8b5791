"""Which of the teachers that exist: what a student would reach with each, and what each costs.

The law knows a teacher by its cross-entropy alone. Give it where you have measured it, on your text in the student's tokens;
otherwise it is what the law of training alone predicts for the parameters that a token touches outside the embeddings and the
tokens of its pretraining. That prediction is a rough one: real teachers lie beyond the law's range, read other text with
another tokenizer, and a mixture of experts knows more than its active parameters.

Beside every teacher stands the same student trained without one for the same FLOPs, the teacher's reading included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import SpecError, TeacherError
from limbeck.plan.accounting import Parameters, teacher_flops_per_token, teacher_parameters
from limbeck.plan.allocate import Size, Spending, alone, distillation_of, loss_alone
from limbeck.plan.laws import Laws
from limbeck.plan.quantities import amount
from limbeck.plan.storage import WEIGHT_BITS, kv_cache_bytes_per_token, store_bytes_per_token, weight_bytes
from limbeck.plan.teachers import resolve
from limbeck.spec.signal import DenseSignal, HardSignal, SampledSignal, Signal, TopKSignal

CHINCHILLA_TOKENS_PER_PARAMETER = 20.0
"""Hoffmann et al. 2022 (arXiv 2203.15556); what is assumed of a teacher whose tokens are not public."""
STORED_SIGNALS: dict[str, Signal] = {"sampled-50": SampledSignal(draws=50), "topk-64": TopKSignal(k=64), "hard": HardSignal()}
SIGNALS: dict[str, Signal] = {**STORED_SIGNALS, "dense": DenseSignal()}
"""For which a store is priced; `dense` only to show why it is never stored."""
WEIGHTS = ("bfloat16", "int8", "int4")
EXPERTS_IN_MXFP4 = "mxfp4_experts"
"""Routed experts at 4.25 bits and the rest at 16, as gpt-oss is published; of a dense model, bfloat16."""


@dataclass(frozen=True)
class Known:
    """A teacher that exists."""

    name: str
    config: Mapping[str, Any]
    params: Parameters
    tokens: float
    """Of its pretraining."""
    tokens_assumed: bool
    measured_loss_nats: float | None

    @property
    def is_mixture(self) -> bool:
        """Of experts."""
        return self.params.active < self.params.total


@dataclass(frozen=True)
class Candidate:
    """What a teacher would do for a student, and cost."""

    name: str
    total_params: int
    active_params: int
    tokens: float
    tokens_assumed: bool
    flops_per_token: float
    loss_nats: float
    loss_measured: bool
    student_loss_nats: float
    alone_at_equal_flops_nats: float
    flops: Spending
    weights_bytes: dict[str, float]
    kv_cache_bytes_per_token: float
    """In bfloat16, while it generates."""
    store_bytes: dict[str, float]
    """For all of the student's tokens, by signal."""


def known(names: str) -> list[Known]:
    """The teachers of `NAME,NAME=NATS,…`: names as `limbeck.plan.teachers.resolve` takes them, with measured losses behind."""
    teachers = [_known(entry) for entry in names.split(",") if entry.strip()]
    if not teachers:
        raise SpecError("--teachers is empty: name some, such as olmo3-7b,qwen3-30b-a3b (see `limbeck plan teachers`)")
    return teachers


def _known(entry: str) -> Known:
    written, equals, loss = entry.strip().partition("=")
    name, config = resolve(written)
    try:
        params = teacher_parameters(config)
    except TeacherError as error:
        raise TeacherError(f"{written}: {error}") from None
    tokens = config.get("pretraining_tokens")
    return Known(
        name=name,
        config=config,
        params=params,
        tokens=tokens or CHINCHILLA_TOKENS_PER_PARAMETER * params.active,
        tokens_assumed=tokens is None,
        measured_loss_nats=amount(loss, source=f"--teachers {written}") if equals else None,
    )


def candidates(teachers: Sequence[Known], *, student: Size, tokens: float, laws: Laws) -> list[Candidate]:
    """Every teacher with what `student` would reach on `tokens` tokens, the best for it first."""
    found = [_candidate(teacher, student=student, tokens=tokens, laws=laws) for teacher in teachers]
    return sorted(found, key=lambda candidate: (candidate.student_loss_nats, candidate.flops.total))


def _candidate(teacher: Known, *, student: Size, tokens: float, laws: Laws) -> Candidate:
    per_token = teacher_flops_per_token(teacher.config, context=student.context)
    loss = teacher.measured_loss_nats or loss_alone(teacher.params.active_non_embedding, teacher.tokens, laws=laws)
    flops = Spending(student.training_flops_per_token * tokens, per_token * tokens, 0.0)
    vocab_size = int(teacher.config["vocab_size"])
    return Candidate(
        name=teacher.name,
        total_params=teacher.params.total,
        active_params=teacher.params.active,
        tokens=teacher.tokens,
        tokens_assumed=teacher.tokens_assumed,
        flops_per_token=per_token,
        loss_nats=loss,
        loss_measured=teacher.measured_loss_nats is not None,
        student_loss_nats=float(distillation_of(laws).loss(student.params, tokens, loss)),
        alone_at_equal_flops_nats=alone(student, flops=flops.total, laws=laws).loss_nats,
        flops=flops,
        weights_bytes={
            **{name: weight_bytes(teacher.config, bits=WEIGHT_BITS[name]) for name in WEIGHTS},
            EXPERTS_IN_MXFP4: weight_bytes(teacher.config, expert_bits=WEIGHT_BITS["mxfp4"]),
        },
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(teacher.config, context=int(student.context)),
        store_bytes={name: tokens * store_bytes_per_token(signal, vocab_size=vocab_size) for name, signal in SIGNALS.items()},
    )


def doubts(teachers: Sequence[Known], *, student: Size) -> list[str]:
    """What the predictions for real teachers assume, a sentence for each assumption that was made."""
    guessed = [teacher for teacher in teachers if teacher.measured_loss_nats is None]
    undisclosed = [teacher.name for teacher in guessed if teacher.tokens_assumed]
    mixtures = [teacher.name for teacher in guessed if teacher.is_mixture]
    foreign = [teacher.name for teacher in teachers if student.vocab_size not in (None, int(teacher.config["vocab_size"]))]
    assumptions = {
        f"pretraining tokens not public, {CHINCHILLA_TOKENS_PER_PARAMETER:g} per active parameter assumed": undisclosed,
        "mixtures of experts taken for dense models of their active parameters, so their loss is predicted too high": mixtures,
        f"another vocabulary than the student's {student.vocab_size}, so losses per token don't compare": foreign,
    }
    said = [f"{assumption}: {', '.join(names)}" for assumption, names in assumptions.items() if names]
    if guessed:
        said.append(
            "teachers' losses are predicted from size and tokens; with a law fitted to your own runs (--law), measure them on "
            "your text and write NAME=NATS"
        )
    return said


def choice(ranked: Sequence[Candidate], *, alone_nats: float) -> str:
    """One sentence: from which teacher to distil, or to train without one."""
    best = ranked[0]
    if best.student_loss_nats >= alone_nats:
        with_best = f"{best.student_loss_nats:.4f} with the best of these ({best.name})"
        return f"train without a teacher: {alone_nats:.4f} nats alone, {with_best}"
    against = f"{best.student_loss_nats:.4f} nats against {alone_nats:.4f} alone on the same tokens"
    if best.student_loss_nats < best.alone_at_equal_flops_nats:
        return f"distil from {best.name}: {against} and {best.alone_at_equal_flops_nats:.4f} alone for the same FLOPs"
    paying = [candidate for candidate in ranked if candidate.student_loss_nats < candidate.alone_at_equal_flops_nats]
    other = f"{paying[0].name} pays even then ({paying[0].student_loss_nats:.4f})" if paying else "none of these pays then"
    return (
        f"distil from {best.name} if its signal is stored already or shared by several students: {against}; once you pay for "
        f"its reading, training without a teacher for the same FLOPs reaches {best.alone_at_equal_flops_nats:.4f}; {other}"
    )
