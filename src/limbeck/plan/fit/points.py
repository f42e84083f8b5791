"""What a law is fitted to: sizes, tokens and losses of finished trainings, checked.

N is parameters outside the embeddings, D tokens trained on, losses are cross-entropies in nats per token.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError, SpecError
from limbeck.plan.formula import Formula, parse_formula
from limbeck.plan.laws import Array, FittedRange

NAMES = ("N", "D", "loss", "teacher_loss")
"""What the arrays are called in tables and conditions."""

_FEWEST_PARAMS, _MOST_PARAMS = 1e3, 1e14
_FEWEST_TOKENS, _MOST_TOKENS = 1e4, 3e14
"""The stock of public text by people is 3e14 to 4e14 tokens (Villalobos et al., arXiv 2211.04325)."""
_PARAMS_PER_TOKEN = 1e3
_NO_TOY, _FEWEST_TOKENS_BUT_OF_TOYS = 1e7, 1e6
"""Above so many parameters nobody stops before so many tokens."""
_FEWEST_FLOPS = 1e9
"""Of 6 N D: a toy's."""
_PERPLEXITY = 20.0
_UNIFORM = 12.5
"""Nats of a uniform guess over 270,000 tokens."""
_LEAST_USUAL_LOSS = 1.0
_NOISE = 0.01
"""A student this fraction better than its teacher is more than chance from run to run."""


@dataclass(frozen=True)
class Points:
    """Finished trainings as float64 arrays of one length. `teacher_loss` is None where nobody taught.

    `places` says for each where it came from (`data.csv, row 7`), for errors.
    """

    params: Array
    tokens: Array
    loss: Array
    teacher_loss: Array | None = None
    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, name in zip(("params", "tokens", "loss", "teacher_loss"), NAMES, strict=True):
            values = getattr(self, field)
            if values is not None:
                object.__setattr__(self, field, self._checked(np.asarray(values, dtype=np.float64), name))

    def __len__(self) -> int:
        return len(self.params)

    def _checked(self, values: Array, name: str) -> Array:
        if values.ndim != 1 or len(values) != len(self.params):
            raise DataError(f"{name} has shape {values.shape} beside {len(self.params)} values of N: give one number a point")
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(wrong):
            place = self.places[wrong[0]] if self.places else f"point {wrong[0] + 1}"
            raise DataError(f"{place}: {name} is {values[wrong[0]]:g}, but must be a finite number above zero")
        return values

    def where(self, chosen: NDArray[np.bool_]) -> "Points":
        """The points for which `chosen` is true."""
        return Points(
            self.params[chosen],
            self.tokens[chosen],
            self.loss[chosen],
            None if self.teacher_loss is None else self.teacher_loss[chosen],
            tuple(place for place, kept in zip(self.places, chosen, strict=True) if kept) if self.places else (),
        )

    def named(self) -> dict[str, Array]:
        """The arrays by the names that conditions use."""
        arrays = zip(NAMES, (self.params, self.tokens, self.loss, self.teacher_loss), strict=True)
        return {name: values for name, values in arrays if values is not None}

    @property
    def fitted_range(self) -> FittedRange:
        """The range that a law fitted to these points may speak for."""
        teachers = None if self.teacher_loss is None else _range(self.teacher_loss)
        return FittedRange(params=_range(self.params), tokens=_range(self.tokens), teacher_loss=teachers)


def lowest_tokens_per_parameter(points: Points, count: int) -> NDArray[np.bool_]:
    """Which `count` points have the least D / N. Besiroglu et al. (arXiv 2404.10102) leave five such out as outliers."""
    lowest = np.zeros(len(points), dtype=np.bool_)
    lowest[np.argsort(points.tokens / points.params, kind="stable")[:count]] = True
    return lowest


def parse_condition(text: str, names: Collection[str], *, option: str) -> Formula:
    """A user's condition on what these names mean; `SpecError` naming the option where it can't be read."""
    try:
        return parse_formula(text, names=names)
    except SpecError as error:
        raise SpecError(f"{option}: {error}") from None


def condition(text: str, values: Mapping[str, Any], *, count: int, option: str) -> NDArray[np.bool_]:
    """Which of `count` points a user's condition holds for; `SpecError` where it isn't one."""
    formula = parse_condition(text, values.keys(), option=option)
    try:
        with np.errstate(all="ignore"):
            holds = np.asarray(formula.holds(values))
    except SpecError as error:
        raise SpecError(f"{option}: {error}") from None
    if holds.dtype != np.bool_:
        raise SpecError(f"{option} {text!r} is not a condition: compare something, as in 'loss<2.3'")
    return np.broadcast_to(holds, (count,))


@dataclass(frozen=True)
class Split:
    """The points that a law is fitted to, and those that its predictions are tested on."""

    fitted: Points
    held_out: Points | None


def split(points: Points, values: Mapping[str, Any], *, drop_lowest: int = 0, hold_out: str | None = None) -> Split:
    """Leave out the `drop_lowest` points of least D / N, and set aside those for which `hold_out` holds.

    `values` says what the condition may name. `DataError` where one of the two groups is empty.
    """
    kept = ~lowest_tokens_per_parameter(points, drop_lowest)
    aside = np.zeros(len(points), dtype=np.bool_)
    if hold_out is not None:
        aside = condition(hold_out, values, count=len(points), option="--hold-out")
        if not (kept & aside).any():
            raise DataError(f"--hold-out {hold_out!r} sets no point aside: all {len(points)} fail it")
    if not (kept & ~aside).any():
        raise DataError(f"no point is left to fit of {len(points)}: drop or hold out fewer")
    return Split(points.where(kept & ~aside), points.where(kept & aside) if hold_out is not None else None)


def doubts(points: Points) -> list[str]:
    """What looks like a wrong unit, a sentence each."""
    found = _doubtful_sizes(np.median(points.params), np.median(points.tokens))
    loss, largest = float(np.median(points.loss)), float(points.loss.max())
    if loss > _PERPLEXITY:
        found.append(
            f"the median loss is {loss:.3g}, which looks like a perplexity: --columns 'loss=log(COL)' makes nats of it"
        )
    elif largest > _UNIFORM:
        found.append(f"a loss of {largest:.3g} nats per token is worse than a uniform guess: is it in bits or a perplexity?")
    elif loss < _LEAST_USUAL_LOSS:
        found.append(f"the median loss is {loss:.3g} nats per token, which is little: is it in bits per byte?")
    if points.teacher_loss is not None and (below := int((points.loss < (1 - _NOISE) * points.teacher_loss).sum())):
        found.append(f"{below} students are better than their teachers by more than {_NOISE:.0%}, which the law can't say")
    return found


def _doubtful_sizes(params: float, tokens: float) -> list[str]:
    found = []
    if params < _FEWEST_PARAMS:
        found.append(f"the median N is {params:.3g}: N looks like billions or millions, multiply in --columns N=COL*1e9")
    elif params > _MOST_PARAMS:
        found.append(f"the median N is {params:.3g}, more than any model has: N is parameters, and not their FLOPs")
    if tokens < _FEWEST_TOKENS:
        found.append(f"the median D is {tokens:.3g}: D looks like billions or millions, multiply in --columns D=COL*1e9")
    elif tokens > _MOST_TOKENS:
        found.append(
            f"the median D is {tokens:.3g} tokens, more than the text that exists: D is tokens, and not bytes or FLOPs"
        )
    elif not found and _too_few_tokens(params, tokens):
        found.append(
            f"the median D is {tokens:.3g} for {params:.3g} parameters: D looks like millions, use --columns D=COL*1e6"
        )
    if not found and 6 * params * tokens < _FEWEST_FLOPS:
        found.append(
            f"6 N D of the medians is {6 * params * tokens:.2g} FLOPs: N is parameters and D tokens, are the units right?"
        )
    return found


def _too_few_tokens(params: float, tokens: float) -> bool:
    """Far fewer than anybody trains a model of this size on."""
    return tokens < params / _PARAMS_PER_TOKEN or (params > _NO_TOY and tokens < _FEWEST_TOKENS_BUT_OF_TOYS)


def _range(values: Array) -> tuple[float, float]:
    return float(values.min()), float(values.max())
