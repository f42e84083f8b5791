"""`check_objective`: what every objective must be, whatever its code.

On a toy batch in float64 it checks that the gradient is that of the value (central differences) and, where a plain twin is
given, that both are the twin's; that a student equal to its teacher is at rest; that positions are alike (permutation), masked
ones absent, chunks and micro-batches of no consequence, padding silent, misalignment heard; that extreme logits and ids of no
probability stay finite in float32; that the loss pulls on the logits, and towards the teacher; and that the scale beside the
forward KL is the one stated.

Terms across tokenizers are refused: they score chunks of text and look from one position to the next, so positions are neither
alike nor apart from one another, and the toy has one vocabulary. No loss of one's own reads chunks.

    from limbeck.testing import check_objective
    check_objective(Custom(function="my_losses:alpha_divergence"), signal=TopKSignal(k=8))

Shapes: T positions, V vocabulary, D student's width, E teacher's width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from limbeck.errors import SpecError
from limbeck.objectives.custom import load_functions
from limbeck.objectives.objective import LossOutput, objective_loss
from limbeck.objectives.schedule import Moment
from limbeck.signals.types import SignalRows
from limbeck.spec.objective import ForwardKL, Objective, check_signal, crosses_tokenizers
from limbeck.spec.signal import HybridSignal, Signal, TopKSignal
from limbeck.testing.claims import Claims, claims_of
from limbeck.testing.toy import Toy, in_float32, make_toy, padded, rows_at, taught, toy_rows

MIDWAY = Moment(fraction=0.5, lr_factor=0.5)


class ConformanceError(AssertionError):
    """A member does not keep a rule of its family; the message says which, and by how much."""


@dataclass(frozen=True)
class Plain:
    """What a plain twin is computed from: no chunks, no statistics, the whole [T, V] matrix."""

    logits_TV: Tensor
    """Of the student, at temperature 1; differentiable."""
    teacher_TV: Tensor
    """The teacher's probabilities at the signal's temperature."""
    targets_T: Tensor
    rows: SignalRows | None
    temperature: float


@dataclass(frozen=True)
class ObjectiveReport:
    """What the check measured, for the reader."""

    loss_nats: float
    """On the toy batch."""
    logit_gradient_norm: float
    """Of the summed loss with respect to the logits, root mean square over positions."""
    scale: float | None
    """Loss over temperature squared times forward KL near the teacher; None where the loss is not zero there."""
    checks: tuple[str, ...]
    """Names of the properties that held."""


@dataclass(frozen=True)
class _Case:
    """An objective on a signal, and how to evaluate it."""

    objective: Objective
    signal: Signal | None
    moment: Moment

    @property
    def temperature(self) -> float:
        return getattr(self.signal, "temperature", 1.0)

    def rows(self, toy: Toy) -> SignalRows | None:
        return None if self.signal is None else toy_rows(self.signal, toy)

    def loss(self, toy: Toy, rows: SignalRows | None, **options: object) -> LossOutput:
        projection = None if toy.projection_ED is None else _linear(toy.projection_ED)
        everything: dict[str, object] = {
            "hidden_TD": toy.hidden_TD,
            "head_VD": toy.head_VD,
            "targets_T": toy.targets_T,
            "rows": rows,
            "temperature": self.temperature,
            "moment": self.moment,
            "projection": projection,
            "sampled_log_probs_T": toy.sampled_log_probs_T,
        }
        try:
            return objective_loss(self.objective, **(everything | options))  # type: ignore[arg-type]
        except SpecError as error:  # the spec was found good before: it is what a function of the user's does
            raise ConformanceError(f"a loss for each position: {error}") from error

    def value_and_gradients(self, toy: Toy, rows: SignalRows | None, **options: object) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss, and its gradient of hidden states and head (and of the projection, where there is one)."""
        ready = _ready(toy)
        output = self.loss(ready, rows, **options)
        leaves = [leaf for leaf in (ready.hidden_TD, ready.head_VD, ready.projection_ED) if leaf is not None]
        found = torch.autograd.grad(output.loss, leaves, allow_unused=True)
        return output.loss.detach(), tuple(
            torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
        )


Check = Callable[[_Case, Claims], bool]
"""Raises if the property fails; False if it is not claimed, or means nothing here."""


def check_objective(
    objective: Objective,
    *,
    signal: Signal | None = None,
    twin: Callable[[Plain], Tensor] | None = None,
    claims: Claims | None = None,
    moment: Moment = MIDWAY,
) -> ObjectiveReport:
    """Raise `ConformanceError` if the objective breaks a rule on this signal; otherwise report what was measured.

    `twin` is the loss of each position, weighted and scaled as the objective says, by plain formulas on `Plain`; its mean and
    the gradient of that must be the objective's. `claims` are for terms that Limbeck does not know, `moment` for scheduled
    weights. A custom function that cannot be loaded is a `SpecError`.
    """
    if crosses_tokenizers(objective):
        raise SpecError(f"objective {objective.kind} scores chunks of text, and not positions: check a loss of one vocabulary")
    check_signal(objective, signal)
    load_functions(objective)
    case = _Case(objective, signal, moment)
    claims = claims or claims_of(objective, signal, moment=moment)
    checks: dict[str, Check] = {
        "gradient of its value": _check_gradient,
        "student equal to teacher": _check_zero_at_teacher,
        "permutation": _check_permutation,
        "mask": _check_mask,
        "chunks": _check_chunks,
        "micro-batches": _check_micro_batches,
        "padding": _check_padding,
        "misalignment": _check_misalignment,
        "finite": _check_finite,
        "pull": _check_pull,
        "towards the teacher": _check_preference,
    }
    held = [name for name, check in checks.items() if check(case, claims)]
    if twin is not None:
        _check_twin(case, twin)
        held.append("plain twin")
    scale = _measured_scale(case) if claims.zero_at_teacher and signal is not None else None
    if claims.scale is not None and scale is not None:
        _require(math.isclose(scale, claims.scale, rel_tol=1e-3), "scale", f"{scale:.6g} beside the stated {claims.scale:.6g}")
        held.append("scale")
    return _report(case, scale, held)


def _check_gradient(case: _Case, claims: Claims) -> bool:
    """Central differences along random directions. Step 1e-5: errors of 1e-10 from curvature and of 1e-11 from rounding."""
    if not claims.has_potential:
        return False
    toy = make_toy()
    rows = case.rows(toy)
    _, gradients = case.value_and_gradients(toy, rows)
    draw = torch.Generator().manual_seed(3)
    leaves = [leaf for leaf in (toy.hidden_TD, toy.head_VD, toy.projection_ED) if leaf is not None]
    for index, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
        direction = torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype)
        ends = [case.loss(_moved(toy, index, step * direction), rows).loss for step in (1e-5, -1e-5)]
        slope = (ends[0] - ends[1]) / 2e-5
        _same(slope, (gradient * direction).sum(), "gradient of its value", atol=1e-7)
    return True


def _check_zero_at_teacher(case: _Case, claims: Claims) -> bool:
    if not claims.zero_at_teacher:
        return False
    toy = taught(make_toy(), noise=0.0)
    loss, gradients = case.value_and_gradients(toy, case.rows(toy))
    _same(loss, torch.zeros_like(loss), "student equal to teacher: loss", atol=1e-10)
    for gradient in gradients:
        _same(gradient, torch.zeros_like(gradient), "student equal to teacher: gradient", atol=1e-9)
    return True


def _check_permutation(case: _Case, claims: Claims) -> bool:
    toy = make_toy()
    rows = case.rows(toy)
    order = torch.randperm(len(toy.targets_T), generator=torch.Generator().manual_seed(4))
    loss, gradients = case.value_and_gradients(toy, rows)
    moved, (hidden_TD, *rest) = case.value_and_gradients(toy.at(order), rows_at(rows, order))
    _same(moved, loss, "permutation: loss")
    for found, expected in zip((hidden_TD, *rest), (gradients[0][order], *gradients[1:]), strict=True):
        _same(found, expected, "permutation: gradient")
    return True


def _check_mask(case: _Case, claims: Claims) -> bool:
    """Masked positions are as if absent, even where they hold NaN."""
    toy = make_toy()
    rows, kept_T = case.rows(toy), torch.arange(len(toy.targets_T)) % 3 != 1
    positions = kept_T.nonzero().squeeze(1)
    loss, gradients = case.value_and_gradients(toy.at(positions), rows_at(rows, positions))
    broken = replace(toy, hidden_TD=torch.where(kept_T[:, None], toy.hidden_TD, torch.nan))
    masked, (hidden_TD, *rest) = case.value_and_gradients(broken, rows, mask_T=kept_T)
    _same(masked, loss, "mask: loss")
    _require(not hidden_TD[~kept_T].any(), "mask", "a masked position has a gradient")
    for found, expected in zip((hidden_TD[kept_T], *rest), gradients, strict=True):
        _same(found, expected, "mask: gradient")
    return True


def _check_chunks(case: _Case, claims: Claims) -> bool:
    toy = make_toy()
    rows = case.rows(toy)
    loss, gradients = case.value_and_gradients(toy, rows)
    for chunk_tokens in (1, 5, len(toy.targets_T)):
        chunked, found = case.value_and_gradients(toy, rows, chunk_tokens=chunk_tokens)
        _same(chunked, loss, f"chunks of {chunk_tokens}: loss")
        for gradient, expected in zip(found, gradients, strict=True):
            _same(gradient, expected, f"chunks of {chunk_tokens}: gradient")
    return True


def _check_micro_batches(case: _Case, claims: Claims) -> bool:
    """Unequal parts over the whole's normaliser add up to the whole: a mean of their means would not."""
    if not claims.additive:
        return False
    toy = make_toy()
    rows, tokens = case.rows(toy), len(toy.targets_T)
    loss, (_, *expected) = case.value_and_gradients(toy, rows)
    parts = [
        case.value_and_gradients(toy.at(part), rows_at(rows, part), normaliser=tokens)
        for part in (slice(0, 4), slice(4, tokens))
    ]
    _same(torch.stack([part[0] for part in parts]).sum(), loss, "micro-batches: loss")
    for index, gradient in enumerate(expected, start=1):
        _same(parts[0][1][index] + parts[1][1][index], gradient, "micro-batches: gradient")
    return True


def _check_padding(case: _Case, claims: Claims) -> bool:
    if case.signal is None or case.signal.kind in ("hard", "dense"):
        return False
    toy = make_toy()
    rows = case.rows(toy)
    loss, gradients = case.value_and_gradients(toy, rows)
    longer, found = case.value_and_gradients(toy, padded(rows))
    _same(longer, loss, "padding: loss")
    for gradient, expected in zip(found, gradients, strict=True):
        _same(gradient, expected, "padding: gradient")
    return True


def _check_misalignment(case: _Case, claims: Claims) -> bool:
    """A student near its teacher, one position late, must cost more: the commonest silent mistake in distillation."""
    if not claims.hears_misalignment:
        return False
    toy = taught(make_toy(tokens=65), noise=0.1)
    rows = case.rows(toy)
    aligned = case.loss(toy, rows).loss.item()
    late = case.loss(replace(toy, hidden_TD=toy.hidden_TD.roll(1, 0)), rows).loss.item()
    _require(late > aligned + 0.01 * abs(aligned), "misalignment", f"{late:.4g} nats one position late, {aligned:.4g} aligned")
    return True


def _check_finite(case: _Case, claims: Claims) -> bool:
    """Float32, logits of up to ten thousand, sure and unsure teachers: nothing but numbers, in value and gradient."""
    for student, teacher in ((1e3, 1.0), (1.0, 1e3), (1e3, 1e3), (0.0, 1e3), (1e3, 0.0)):
        toy = make_toy()
        toy = replace(toy, head_VD=toy.head_VD * student, teacher_head_VE=toy.teacher_head_VE * teacher)
        rows = in_float32(case.rows(toy))
        narrow = replace(
            toy,
            hidden_TD=toy.hidden_TD.float(),
            head_VD=toy.head_VD.float(),
            projection_ED=None if toy.projection_ED is None else toy.projection_ED.float(),
        )
        loss, gradients = case.value_and_gradients(narrow, rows)
        everything = [loss, *gradients]
        name = f"student's logits times {student:g}, teacher's times {teacher:g}"
        _require(all(bool(each.isfinite().all()) for each in everything), "finite", f"NaN or infinity with the {name}")
    return True


def _check_pull(case: _Case, claims: Claims) -> bool:
    """Some logit matters. What is constant has gradients of rounding at most."""
    norm = _logit_gradient_norm(case)
    _require(norm > 1e-12, "pull", f"the gradient at the logits is {norm:.3g}: the student would learn nothing")
    return True


def _check_preference(case: _Case, claims: Claims) -> bool:
    if not claims.prefers_its_teacher or case.signal is None or case.signal.kind not in ("topk", "topp", "dense"):
        return False
    stranger, near = make_toy(), taught(make_toy(), noise=0.1)
    far_off, close = (case.loss(toy, case.rows(toy)).loss.item() for toy in (stranger, near))
    found = f"{close:.4g} nats near the teacher, {far_off:.4g} far from it"
    _require(close < far_off, "towards the teacher", found)
    return True


def _check_twin(case: _Case, twin: Callable[[Plain], Tensor]) -> None:
    toy = _ready(make_toy())
    rows = case.rows(toy)
    plain = Plain(
        logits_TV=toy.hidden_TD @ toy.head_VD.T,
        teacher_TV=toy.teacher_probs(case.temperature),
        targets_T=toy.targets_T,
        rows=rows,
        temperature=case.temperature,
    )
    expected = twin(plain).mean()
    gradients = torch.autograd.grad(expected, (toy.hidden_TD, toy.head_VD))
    loss, found = case.value_and_gradients(make_toy(), rows)
    _same(loss, expected.detach(), "plain twin: loss")
    for gradient, other in zip(found, gradients, strict=False):
        _same(gradient, other, "plain twin: gradient")


def _measured_scale(case: _Case) -> float:
    """Loss over the forward KL on the same ids, at a student so near its teacher that only the second order counts."""
    toy, signal = taught(make_toy(), noise=1e-4), case.signal
    if isinstance(signal, HybridSignal):  # what reads its head alone is compared with that
        signal = TopKSignal(k=signal.k, temperature=signal.temperature)
    beside = _Case(ForwardKL(), signal, case.moment)
    return case.loss(toy, case.rows(toy)).loss.item() / beside.loss(toy, beside.rows(toy)).loss.item()


def _report(case: _Case, scale: float | None, held: list[str]) -> ObjectiveReport:
    toy = make_toy()
    loss = case.loss(toy, case.rows(toy)).loss.item()
    return ObjectiveReport(loss, _logit_gradient_norm(case), scale, tuple(held))


def _logit_gradient_norm(case: _Case) -> float:
    """Of the summed loss, root mean square over positions."""
    toy = make_toy()
    logits_TV = (toy.hidden_TD @ toy.head_VD.T).requires_grad_()
    rows, tokens, vocabulary = case.rows(toy), *logits_TV.shape
    identity_VV = torch.eye(vocabulary, dtype=torch.float64)
    projection = None if toy.projection_ED is None else _linear(toy.projection_ED @ torch.linalg.pinv(toy.head_VD))
    by_logits = case.loss(toy, rows, hidden_TD=logits_TV, head_VD=identity_VV, projection=projection).loss
    (gradient_TV,) = torch.autograd.grad(by_logits * tokens, logits_TV)
    return float(gradient_TV.square().sum(-1).mean().sqrt())


def _linear(weight_ED: Tensor) -> nn.Module:
    """A linear map that differentiates with respect to the tensor itself."""

    class Linear(nn.Module):
        def forward(self, hidden_TD: Tensor) -> Tensor:
            return hidden_TD @ weight_ED.T

    return Linear()


def _ready(toy: Toy) -> Toy:
    """The toy with leaves that want gradients."""
    leaves = {name: getattr(toy, name) for name in ("hidden_TD", "head_VD", "projection_ED")}
    return replace(toy, **{name: leaf.clone().requires_grad_() for name, leaf in leaves.items() if leaf is not None})


def _moved(toy: Toy, index: int, step: Tensor) -> Toy:
    name = ("hidden_TD", "head_VD", "projection_ED")[index]
    return replace(toy, **{name: getattr(toy, name) + step})


def _same(found: Tensor, expected: Tensor, name: str, *, atol: float = 1e-10) -> None:
    apart = float((found - expected).abs().max()) if found.numel() else 0.0
    allowed = atol * (1 + float(expected.abs().max()))
    _require(apart <= allowed, name, f"{apart:.3g} apart, {allowed:.3g} allowed")


def _require(held: bool, name: str, found: str) -> None:
    if not held:
        raise ConformanceError(f"{name}: {found}")
