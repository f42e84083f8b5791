"""The tables of the report as plain strings; `page` escapes and draws them.

Intervals are 95%, over held-out documents (`statistics`). Ratios are to the control.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.report import formats
from limbeck.report.arms import AXES, Arm, Axis, difference, equal_cost, finite, reads, same_heldout
from limbeck.report.verdict import outcome_at, outcome_of


@dataclass(frozen=True)
class Table:
    """Headers, rows of as many cells, by row number a mark ('control', 'muted'), and which columns hold words, not numbers."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})
    marks: Mapping[int, str] = field(default_factory=dict)


def result_table(arms: Sequence[Arm], *, control: Arm, teacher: Mapping[str, Any] | None) -> Table:
    """What every arm reached: bits per byte and the difference to the control with intervals, KL to the teacher."""
    headers = ("arm", "learns from", "bits per byte [95%]", "minus control [95%]", "verdict", "KL to teacher, nats/token")
    rows = [_result_row(arm, control) for arm in arms]
    if teacher is not None:
        rows.append(("teacher", str(teacher.get("name", "")), formats.fixed(finite(teacher.get("bits_per_byte"))), "", "", ""))
    return Table(headers, tuple(rows), words=frozenset({0, 1, 4}), marks=_marks(arms, control, teacher is not None))


def _result_row(arm: Arm, control: Arm) -> tuple[str, ...]:
    if not arm.finished:
        return (_name(arm, control), learns_from(arm), arm.status, "", "", "")
    versus = difference(arm, control) if arm is not control else None
    if arm is control:
        word = ""
    elif control.finished and not same_heldout(arm, control):
        word = "measured on other documents"
    else:
        word = _WORDS[outcome_of(versus)]
    kl = formats.fixed(finite(arm.summary.get("kl_to_teacher_nats")))
    return (
        _name(arm, control),
        learns_from(arm),
        formats.interval(arm.estimate),
        formats.interval(versus, sign=True),
        word,
        kl,
    )


_WORDS = {"ahead": "ahead", "behind": "behind", "level": "no difference told", "unknown": "cannot be told"}


def cost_table(arms: Sequence[Arm], *, control: Arm) -> Table:
    """What every arm has spent, and the time of a step relative to the control's."""
    headers = ("arm", "steps", "tokens", "seconds", "tokens/s", "step time", "student FLOPs", "teacher FLOPs", "bytes read")
    rows = tuple(_cost_row(arm, control) for arm in arms)
    return Table(headers, rows, marks=_marks(arms, control, False))


def _cost_row(arm: Arm, control: Arm) -> tuple[str, ...]:
    spent = arm.summary or (arm.run.records[-1] if arm.run is not None and arm.run.records else {})
    speed = spent.get("tokens_per_second") or (spent["tokens"] / spent["seconds"] if spent.get("seconds") else None)
    name = _name(arm, control) if arm.finished else f"{_name(arm, control)}, {arm.status}"
    return (
        name,
        formats.count(spent.get("step")),
        formats.count(spent.get("tokens")),
        formats.seconds(spent.get("seconds")),
        formats.count(speed),
        formats.ratio(arm.seconds_per_step(), control.seconds_per_step()),
        formats.power(spent.get("student_flops")),
        formats.power(spent.get("teacher_flops")),
        formats.size(spent.get("bytes_read")),
    )


def equal_table(arms: Sequence[Arm], *, control: Arm) -> Table:
    """Every arm minus the control at equal tokens, seconds and FLOPs, in bits per byte."""
    headers = ("arm", "equal tokens", "equal seconds", "equal student FLOPs", "equal student + teacher FLOPs")
    others = [arm for arm in arms if arm is not control]
    rows = tuple((arm.name, *(_equal_cell(arm, control, axis) for axis in AXES)) for arm in others)
    return Table(headers, rows, marks=_marks(others, control, False))


def _equal_cell(arm: Arm, control: Arm, axis: Axis) -> str:
    final = difference(arm, control)
    if final is None:
        return arm.status if not arm.finished else "not comparable"
    point = equal_cost(arm, control, axis)
    if point.difference is None:
        return f"no overlap ({_at(axis, point.at)})"
    outcome = outcome_of(final) if point.read_early == "neither" else outcome_at(point, final.half_width)
    return f"{formats.signed(point.difference)}, {_WORDS[outcome]} ({_at(axis, point.at)})"


def _at(axis: Axis, cost: float) -> str:
    if axis == "seconds":
        return formats.seconds(cost)
    return formats.count(cost) if axis == "tokens" else formats.power(cost)


def store_table(stores: Sequence[Mapping[str, Any]], arms: Sequence[Arm]) -> Table:
    """What each signal store is, how faithful it is, what it weighs and how fast it was written; one store a column."""
    facts = [_store_facts(store, arms) for store in stores]
    labels = list(dict.fromkeys(label for each in facts for label in each))
    rows = tuple((label, *(each.get(label, formats.UNKNOWN) for each in facts)) for label in labels)
    return Table(("store", *(str(store.get("kind")) for store in stores)), rows, words=frozenset(range(len(stores) + 1)))


def _store_facts(store: Mapping[str, Any], arms: Sequence[Arm]) -> dict[str, str]:
    readers = [arm.name for arm in arms if reads(arm, store)]
    identity = {key.replace("_", " "): formats.pairs(value) for key, value in (store.get("identity") or {}).items()}
    return {
        "read by": ", ".join(readers) or formats.UNKNOWN,
        "path": formats.pairs(store.get("path")),
        **identity,
        "digest": formats.pairs(store.get("identity_digest")),
        "tokens": formats.count(finite(store.get("tokens"))),
        "distinct ids per token": formats.fixed(finite(store.get("distinct_ids_per_token")), 2),
        "mean tail mass": _or_none(finite(store.get("tail_mass"))),
        "teacher’s entropy, nats/token": _or_none(finite(store.get("entropy_nats"))),
        "size": formats.size(finite(store.get("bytes"))),
        "bytes per token": formats.fixed(finite(store.get("bytes_per_token")), 2),
        "bytes per distinct id": formats.fixed(finite(store.get("bytes_per_distinct_id")), 2),
        "scoring, tokens/s": formats.count(finite(store.get("scoring_tokens_per_second"))),
    }


def _or_none(value: float | None) -> str:
    return "not kept" if value is None else formats.fixed(value)


def setup_table(control: Arm) -> Table:
    """The student, the texts and the budget, as the control's recipe and summary have them."""
    assert control.run is not None, "a control that was never started has no setup to show"
    recipe = control.run.recipe
    facts = [
        ("student", formats.pairs(recipe.student.model_dump())),
        ("parameters", parameters_text(control)),
        ("training texts", formats.pairs(recipe.data.train.model_dump())),
        ("held-out texts", formats.pairs(recipe.data.heldout.model_dump())),
        ("sequence", f"{recipe.data.sequence_length} tokens, packing={recipe.data.packing}"),
        ("batch", formats.pairs(recipe.batch.model_dump())),
        ("budget", formats.pairs(recipe.budget.model_dump())),
        ("optimizer", formats.pairs(recipe.optimizer.model_dump())),
        ("schedule", formats.pairs(recipe.schedule.model_dump())),
        ("precision", str(control.summary.get("precision", recipe.precision))),
        ("student FLOPs per token", formats.power(finite(control.summary.get("student_flops_per_token")))),
    ]
    return Table(("setup", ""), tuple(facts), words=frozenset({0, 1}))


def parameters_text(arm: Arm) -> str:
    """`11,200,000: 4,100,000 outside the embedding, 7,100,000 in it`."""
    parameters = arm.summary.get("parameters")
    if not parameters:
        return formats.UNKNOWN
    outside, inside = formats.count(parameters["non_embedding"]), formats.count(parameters["embedding"])
    return f"{formats.count(parameters['total'])}: {outside} outside the embedding, {inside} in it"


def environment_table(arms: Sequence[Arm]) -> Table:
    """Versions and hardware; one value where all runs agree, otherwise every arm's own."""
    runs = [(arm.name, arm.run.environment) for arm in arms if arm.run is not None]
    keys = list(dict.fromkeys(key for _, environment in runs for key in environment))
    rows: list[tuple[str, str]] = []
    for key in keys:
        values = {name: str(environment.get(key, formats.UNKNOWN)) for name, environment in runs}
        agreed = len(set(values.values())) == 1
        own = "; ".join(f"{name}: {value}" for name, value in values.items())
        rows.append((key, next(iter(values.values())) if agreed else own))
    return Table(("environment", ""), tuple(rows), words=frozenset({0, 1}))


_INCIDENTAL = ("name", "output", "store", "checkpoint")


def recipe_differences(arm: Arm, control: Arm) -> dict[str, Any]:
    """What an arm's recipe says otherwise than the control's, as dotted paths; names and places aside."""
    if arm.run is None or control.run is None:
        return {}
    mine, theirs = (dict(formats.flatten(run.recipe.model_dump(mode="json"))) for run in (arm.run, control.run))
    changed = (path for path in dict.fromkeys([*mine, *theirs]) if mine.get(path) != theirs.get(path))
    return {path: mine.get(path) for path in changed if path.split(".")[0] not in _INCIDENTAL}


def difference_table(arms: Sequence[Arm], *, control: Arm) -> Table:
    """Where each arm's recipe departs from the control's."""
    rows = tuple(
        (arm.name, ", ".join(f"{path}={value}" for path, value in recipe_differences(arm, control).items()) or "nothing")
        for arm in arms
        if arm is not control and arm.run is not None
    )
    return Table(("arm", f"differs from “{control.name}” by"), rows, words=frozenset({0, 1}))


def learns_from(arm: Arm) -> str:
    """The objective and the signal in a few words."""
    if arm.run is None:
        return formats.UNKNOWN
    recipe = arm.run.recipe
    if not arm.has_teacher:
        return "the text alone"
    assert recipe.signal is not None, "a recipe checks that an objective with a teacher has a signal"
    return f"{recipe.objective.kind} on {recipe.signal_slug}{' (live)' if recipe.signal.live else ''}"


def _name(arm: Arm, control: Arm) -> str:
    return f"{arm.name} (control)" if arm is control else arm.name


def _marks(arms: Sequence[Arm], control: Arm, teacher_row: bool) -> dict[int, str]:
    marks = {row: "control" for row, arm in enumerate(arms) if arm is control}
    marks |= {row: "muted" for row, arm in enumerate(arms) if not arm.finished}
    return marks | ({len(arms): "muted"} if teacher_row else {})
