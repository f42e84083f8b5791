"""Slices through the laws: one thing varies, the rest stays, and the bottom of the curve is the best choice of it.

Student size at a fixed compute, teacher size at a fixed pretraining compute, teacher loss at a fixed student (where the U of
arXiv 2502.08606 shows: a teacher can be too good), and the best teacher as the student's tokens grow.

Teachers that stay fixed are of the family, trained on 20 tokens a parameter.
"""

from dataclasses import dataclass

import numpy as np

from limbeck.plan.accounting import TRAINING_OVER_FORWARD
from limbeck.plan.allocate import Size, Teacher, best_teacher, distillation_of
from limbeck.plan.family import flops_per_token, short
from limbeck.plan.figures.marks import (
    LOSS,
    SEARCHED,
    SIZES_MAP,
    STUDENT_PARAMS,
    STUDENT_TOKENS,
    SUPERVISED,
    TEACHER_LOSS,
    TEACHER_PARAMS,
    Axis,
    Bools,
    Chart,
    Curve,
    Panel,
    fitted_note,
    guide,
    ordered_colours,
    power,
    within,
)
from limbeck.plan.laws import Array, Laws, Range, loss_of

TOKENS_PER_PARAM = 20
_POINTS = 241
_POINTS_OF_OPTIMA = 121
_STUDENT_PARAMS = (7e7, 2e10)
_TEACHER_PARAMS = (3e7, 1e11)
_STUDENT_FLOPS = (1e20, 1e21, 1e22)
_TEACHER_FLOPS = (1e20, 1e21, 1e22, 1e23)
_FIXED_TEACHERS = (546e6, 1.82e9, 7.75e9)
_FIXED_STUDENTS = (198e6, 1.82e9, 7.75e9)
_RATIOS = (20, 80, 320, 1280)
_SIZES = (198e6, 546e6, 1.82e9, 7.75e9)
_RATIO_OF_SIZES = 80
_TOKENS = (1e9, 1e14)
_BEST_TEACHER = (1e11, 2e12)
"""Parameters and tokens of the best shown where teachers vary by their loss."""
_BELOW, _ABOVE = 0.03, 0.12
"""Nats shown around what matters: bottoms and levels."""


@dataclass(frozen=True)
class Slice:
    """Distilled and supervised student losses along one variable."""

    x: Array
    tokens: Array
    teacher_loss: Array
    distilled: Array
    supervised: Array


def student_slice(laws: Laws, *, flops: float, teacher_loss: float, params: Array) -> Slice:
    """All of `flops` for the student's training, D_S = C / (3 F(N_S)), under a teacher of one loss."""
    tokens = flops / (TRAINING_OVER_FORWARD * flops_per_token(params))
    distilled = distillation_of(laws).loss(params, tokens, teacher_loss)
    return Slice(params, tokens, np.full_like(params, teacher_loss), distilled, loss_of(laws.supervised, params, tokens))


def teacher_slice(laws: Laws, *, student: float, tokens: float, flops: float, params: Array) -> Slice:
    """One student; its teachers cost `flops` each to pretrain, D_T = C_T / (3 F(N_T))."""
    losses = loss_of(laws.supervised, params, flops / (TRAINING_OVER_FORWARD * flops_per_token(params)))
    return _taught(laws, student=student, tokens=tokens, x=params, losses=losses)


def teacher_loss_slice(laws: Laws, *, student: float, tokens: float, losses: Array) -> Slice:
    """One student under teachers of every loss."""
    return _taught(laws, student=student, tokens=tokens, x=losses, losses=losses)


def _taught(laws: Laws, *, student: float, tokens: float, x: Array, losses: Array) -> Slice:
    distilled = distillation_of(laws).loss(student, tokens, losses)
    alone = np.full_like(losses, loss_of(laws.supervised, student, tokens))
    return Slice(x, np.full_like(losses, tokens), losses, distilled, alone)


def best_teachers(laws: Laws, *, student: float, tokens: Array) -> list[Teacher]:
    """The teacher that makes a student best, for each number of its tokens."""
    return [best_teacher(Size.of_family(student), tokens=float(count), laws=laws) for count in tokens]


def isoflop_students(laws: Laws) -> Chart:
    """Student loss over student size at fixed compute, one panel a teacher."""
    row = tuple(_isoflop_student(laws, size) for size in _FIXED_TEACHERS)
    return Chart("isoflop-students", "Student size at fixed training compute", (row,), (5.0, 4.4), fitted_note(laws.fitted), 4)


def _isoflop_student(laws: Laws, teacher: float) -> Panel:
    """Distilled in the colour of its budget, supervised dashed in the same."""
    params, curves = np.geomspace(*_STUDENT_PARAMS, _POINTS), []
    level = float(loss_of(laws.supervised, teacher, TOKENS_PER_PARAM * teacher))
    for flops, colour in zip(_STUDENT_FLOPS, ordered_colours(len(_STUDENT_FLOPS)), strict=True):
        one = student_slice(laws, flops=flops, teacher_loss=level, params=params)
        taught = within(laws.fitted, params=params, tokens=one.tokens, teacher_loss=level)
        alone = within(laws.fitted, params=params, tokens=one.tokens)
        curves.append(Curve(f"distilled, {power(flops)} FLOPs", params, one.distilled, colour, "-", taught, bottom=True))
        curves.append(Curve(f"supervised, {power(flops)} FLOPs", params, one.supervised, colour, "--", alone, bottom=True))
    y = Axis(LOSS, "linear", _limits(curves, levels=[level]))
    title = f"teacher {short(teacher)}: {level:.3f} nats/token"
    levels = guide("teacher", _STUDENT_PARAMS, (level, level), style=":")
    return Panel(title, Axis(STUDENT_PARAMS, "count", _STUDENT_PARAMS), y, (*curves, levels))


def isoflop_teachers(laws: Laws) -> Chart:
    """Student loss over teacher size at fixed pretraining compute, one panel a student."""
    row = tuple(_isoflop_teacher(laws, student) for student in _FIXED_STUDENTS)
    return Chart("isoflop-teachers", "Teacher size at fixed pretraining compute", (row,), (5.0, 4.4), fitted_note(laws.fitted))


def _isoflop_teacher(laws: Laws, student: float) -> Panel:
    params, curves = np.geomspace(*_TEACHER_PARAMS, _POINTS), []
    tokens = TOKENS_PER_PARAM * student
    for flops, colour in zip(_TEACHER_FLOPS, ordered_colours(len(_TEACHER_FLOPS)), strict=True):
        one = teacher_slice(laws, student=student, tokens=tokens, flops=flops, params=params)
        fitted = _fitted_to(laws, one, student)
        curves.append(Curve(f"teachers of {power(flops)} FLOPs", params, one.distilled, colour, "-", fitted, bottom=True))
    level = float(loss_of(laws.supervised, student, tokens))
    y = Axis(LOSS, "linear", _limits(curves, levels=[level]))
    title = f"student {short(student)} on {short(tokens)} tokens"
    alone = guide("supervised", _TEACHER_PARAMS, (level, level), colour=SUPERVISED)
    return Panel(title, Axis(TEACHER_PARAMS, "count", _TEACHER_PARAMS), y, (alone, *curves))


def teacher_u_shape(laws: Laws) -> Chart:
    """Student loss over teacher loss: by tokens for three students, by student at one number of tokens a parameter."""
    by_ratio, by_size = ordered_colours(len(_RATIOS)), ordered_colours(len(_SIZES), colour_map=SIZES_MAP)
    panels = [
        _u_shape(
            laws,
            f"student {short(size)}",
            [_Case(f"{ratio} tokens/parameter", size, ratio * size) for ratio in _RATIOS],
            by_ratio,
        )
        for size in _FIXED_STUDENTS
    ]
    sizes = [_Case(f"student {short(size)}", size, _RATIO_OF_SIZES * size) for size in _SIZES]
    panels.append(_u_shape(laws, f"{_RATIO_OF_SIZES} tokens/parameter", sizes, by_size))
    title = "A teacher can be too good: student loss against teacher loss"
    note = f"{fitted_note(laws.fitted)}\nDotted: the same student supervised. Dashed: student and teacher alike."
    rows = tuple(panels[:2]), tuple(panels[2:])
    return Chart("teacher-u-shape", title, rows, (5.8, 4.0), note.strip(), legend_columns=4)


@dataclass(frozen=True)
class _Case:
    name: str
    student: float
    tokens: float


def _u_shape(laws: Laws, title: str, cases: list[_Case], colours: list[str]) -> Panel:
    alone = [float(loss_of(laws.supervised, case.student, case.tokens)) for case in cases]
    ends = float(loss_of(laws.supervised, *_BEST_TEACHER)), max(alone) + _ABOVE
    losses = np.linspace(*ends, _POINTS)
    curves: list[Curve] = []
    for case, colour, level in zip(cases, colours, alone, strict=True):
        one = teacher_loss_slice(laws, student=case.student, tokens=case.tokens, losses=losses)
        curves.append(guide("", ends, (level, level), colour=colour, style=":"))
        curves.append(Curve(case.name, one.x, one.distilled, colour, "-", _fitted_to(laws, one, case.student), bottom=True))
    y = Axis(LOSS, "linear", _limits(curves, levels=alone))
    return Panel(title, Axis(TEACHER_LOSS, "linear", ends), y, (guide("", ends, ends), *curves))


def optimal_teacher(laws: Laws) -> Chart:
    """The best teacher over the student's tokens: its loss, and the size that reaches it for the least compute."""
    tokens = np.geomspace(*_TOKENS, _POINTS_OF_OPTIMA)
    of_loss: list[Curve] = []
    of_params: list[Curve] = []
    for size, colour in zip(_SIZES, ordered_colours(len(_SIZES), colour_map=SIZES_MAP), strict=True):
        teachers = best_teachers(laws, student=size, tokens=tokens)
        losses = np.array([teacher.loss_nats for teacher in teachers])
        params = np.array([teacher.params for teacher in teachers])
        fitted = within(laws.fitted, params=size, tokens=tokens, teacher_loss=losses)
        for curves, values in ((of_loss, losses), (of_params, params)):
            curves.append(Curve(f"student {short(size)}", tokens, values, colour, "-", fitted))
    x = Axis(STUDENT_TOKENS, "count", _TOKENS)
    row = (
        Panel("loss of the best teacher", x, Axis(TEACHER_LOSS, "linear"), tuple(of_loss)),
        Panel("its size, if trained for the least compute", x, Axis(TEACHER_PARAMS, "count"), tuple(of_params)),
    )
    note = f"{fitted_note(laws.fitted)}\n{SEARCHED}"
    return Chart("optimal-teacher", "The best teacher for a student on so many tokens", (row,), (5.8, 4.4), note.strip())


def _fitted_to(laws: Laws, one: Slice, student: float) -> Bools:
    return within(laws.fitted, params=student, tokens=one.tokens, teacher_loss=one.teacher_loss)


def _limits(curves: list[Curve], *, levels: list[float]) -> Range:
    """Around the bottoms of all curves and the levels that they are compared with."""
    shown = [*levels, *(float(np.min(curve.y)) for curve in curves)]
    return min(shown) - _BELOW, max(shown) + _ABOVE
