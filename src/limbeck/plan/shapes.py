"""Students of equal size and other proportions: deeper and thinner, or shallower and wider.

Depth is paid in steps that wait for one another, width in larger products, so latency differs where parameters do not
(Nemotron-Flash, arXiv 2511.18890). Heads keep their channels and the ratio of queries to keys, and their number goes with the
width; the MLP takes what is left of the parameters, and the width is the one that leaves it closest to its old proportion.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from limbeck.errors import SpecError
from limbeck.plan.accounting import student_parameters
from limbeck.spec.base import parse
from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student

ShapedStudent = Olmo3Student | LadderStudent | MoeStudent | GolfStudent

TOLERANCE = 0.02
_MLP_STEP = 8
_WIDEST = 8
"""Widths are tried up to so many times the student's own."""


def equal_shapes(student: ShapedStudent, *, vocab_size: int, layers: Sequence[int]) -> dict[str, ShapedStudent]:
    """The student with each of these numbers of layers and, within 2 %, its own number of parameters; by `12x256`.

    Parameters are those of one token, embeddings included. `SpecError` where no width comes that close.
    """
    target = _parameters(student, vocab_size)
    shapes = {}
    for depth in layers:
        candidates = list(_candidates(student, depth, vocab_size=vocab_size, target=target))
        close = [each for each in candidates if abs(_parameters(each, vocab_size) / target - 1) <= TOLERANCE]
        if not close:
            raise SpecError(f"no width gives {depth} layers {target:,} parameters within {TOLERANCE:.0%}: try another depth")
        best = min(close, key=lambda each: _departure(each, student, vocab_size=vocab_size))
        shapes[f"{depth}x{best.layout.hidden_size}"] = best
    return shapes


def _candidates(student: ShapedStudent, depth: int, *, vocab_size: int, target: int) -> Iterator[ShapedStudent]:
    """One for each width."""
    if isinstance(student, LadderStudent):
        step = 2 * student.num_heads
        for width in range(step, _WIDEST * student.width + 1, step):
            yield _changed(student, num_layers=depth, hidden_size=width)
        return
    group = student.num_heads // student.num_kv_heads
    for heads in range(group, _WIDEST * student.num_heads + 1, group):
        width, rest = divmod(student.hidden_size * heads, student.num_heads)
        if rest or width % _MLP_STEP:
            continue
        sizes = {"num_layers": depth, "hidden_size": width, "num_heads": heads, "num_kv_heads": heads // group}
        least = _changed(student, **sizes, intermediate_size=_MLP_STEP)
        per_step = _parameters(_changed(student, **sizes, intermediate_size=2 * _MLP_STEP), vocab_size) - _parameters(
            least, vocab_size
        )
        if per_step == 0:
            raise SpecError(f"student.kind={student.kind} has experts alone: shapes of equal size are for dense MLPs")
        steps = 1 + round((target - _parameters(least, vocab_size)) / per_step)
        if steps < 1:
            return  # wider ones have too many parameters without an MLP
        yield _changed(student, **sizes, intermediate_size=steps * _MLP_STEP)


def _departure(shape: ShapedStudent, student: ShapedStudent, *, vocab_size: int) -> float:
    """How far the MLP's proportion is from the student's; where that follows from the width, how far the parameters are."""
    if isinstance(student, LadderStudent):
        return abs(math.log(_parameters(shape, vocab_size) / _parameters(student, vocab_size)))
    return abs(math.log(_proportion(shape) / _proportion(student)))


def _proportion(student: ShapedStudent) -> float:
    return student.intermediate_size / student.layout.hidden_size


def _parameters(student: ShapedStudent, vocab_size: int) -> int:
    return student_parameters(student, vocab_size=vocab_size).active


def _changed(student: ShapedStudent, **changes: Any) -> ShapedStudent:
    return parse(type(student), {**student.model_dump(), **changes}, source=f"{changes['num_layers']} layers")
