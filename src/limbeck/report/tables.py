"""The tables of results and costs as plain strings beside unrounded records.

Means are over finished seeds, ± their sample standard deviation. What the interval of a difference is over is in its own column
(`comparisons`). Ratios are to what an arm is held against.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import formats
from limbeck.report.arms import COSTS, Arm, Arms, Cost, finite
from limbeck.report.blocks import Scalar, Table
from limbeck.report.comparisons import BASES, Comparison, equal_reading, nearest_pairs, outcome_at, outcome_of, paired
from limbeck.spec.study import Basis

_WORDS = {"ahead": "ahead", "behind": "behind", "level": "no difference told", "unknown": "cannot be told"}


def arms_table(arms: Arms, *, found: Sequence[Comparison], teacher: Mapping[str, Any] | None) -> Table:
    """What every arm is and has reached."""
    bases = [basis for basis in BASES if any(each.basis == basis for each in found)]
    headers = (
        "arm",
        "learns from",
        "bits per byte",
        "n",
        "KL to teacher, nats",
        *(f"minus its control, {_AT[b]}" for b in bases),
    )
    if all(each.role == "arm" for each in found):
        headers = tuple(header.replace("its control", "its counterpart") for header in headers)
    headers = (*headers, "parameters", "tokens", "seconds")
    rows = [_arm_row(arm, arms, bases, found) for arm in arms]
    if teacher is not None:
        bits = formats.fixed(finite(teacher.get("bits_per_byte")))
        rows.append(("teacher", str(teacher.get("name", "")), bits, *("",) * (len(headers) - 3)))
    words = frozenset({0, 1, *range(5, 5 + len(bases))})
    records = tuple(_arm_record(arm, found) for arm in arms)
    return Table(headers, tuple(rows), words, _marks(list(arms), arms, teacher is not None), name="arms", records=records)


_AT: dict[Basis, str] = {"tokens": "equal tokens", "seconds": "equal seconds", "flops": "equal FLOPs"}


def _arm_row(arm: Arm, arms: Arms, bases: Sequence[Basis], found: Sequence[Comparison]) -> tuple[str, ...]:
    bits = formats.interval(arm.documents_estimate) if arm.documents_estimate is not None else formats.spread(arm.bits)
    return (
        name_of(arm, arms),
        learns_from(arm),
        bits if arm.bits is not None else arm.status,
        _seed_count(arm),
        formats.spread(arm.spread_of("kl_to_teacher_nats")),
        *(_comparison_cell([each for each in found if each.arm is arm and each.basis == basis]) for basis in bases),
        formats.count(finite((arm.first.summary.get("parameters") or {}).get("total"))),
        formats.count(arm.spent("tokens")),
        formats.seconds(arm.spent("seconds")),
    )


def _seed_count(arm: Arm) -> str:
    """`3`, or `2 of 3` where a member has not finished."""
    done = len(arm.finished)
    return f"{done}" if done == len(arm.members) else f"{done} of {len(arm.members)}"


def _comparison_cell(found: Sequence[Comparison]) -> str:
    if not found:
        return formats.UNKNOWN
    each = found[0]
    if each.difference is None:
        return each.why
    part = "" if each.over == "seeds" and len(each.by_seed) == len(each.arm.finished) else f" ({each.basis_of_interval})"
    return f"{formats.interval(each.difference, sign=True)}, {_WORDS[each.outcome]}{part}"


def _arm_record(arm: Arm, found: Sequence[Comparison]) -> dict[str, Scalar]:
    bits, kl = arm.bits, arm.spread_of("kl_to_teacher_nats")
    record: dict[str, Scalar] = {
        "arm": arm.name,
        **{f"setting {axis}": formats.pairs(value) for axis, value in arm.settings.items()},
        "status": arm.status,
        "finished_seeds": len(arm.finished),
        "bits_per_byte": bits.mean if bits is not None else None,
        "bits_per_byte_sd": bits.sd if bits is not None else None,
        "kl_to_teacher_nats": kl.mean if kl is not None else None,
        "kl_to_teacher_nats_sd": kl.sd if kl is not None else None,
        "parameters": finite((arm.first.summary.get("parameters") or {}).get("total")),
        **{key: arm.spent(key) for key in ("tokens", "seconds", "student_flops", "teacher_flops")},
    }
    for each in (each for each in found if each.arm is arm):
        value, role = each.difference, f"{each.role}_{each.basis}"
        record |= {
            f"minus_{role}": value.value if value is not None else None,
            f"minus_{role}_low": value.low if value is not None else None,
            f"minus_{role}_high": value.high if value is not None else None,
            f"minus_{role}_over": each.over if value is not None else each.why,
        }
    return record


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Every comparison on its own row, with what its interval is over."""
    headers = ("arm", "against", "at equal", "difference [95%]", "verdict", "interval over", "by seed")
    rows = tuple(
        (
            each.arm.name,
            each.against,
            "FLOPs" if each.basis == "flops" else each.basis,
            formats.interval(each.difference, sign=True) if each.difference is not None else each.why,
            _WORDS[each.outcome] if each.difference is not None else "",
            each.basis_of_interval,
            ", ".join(formats.signed(value) for _, value in each.by_seed),
        )
        for each in found
    )
    records = tuple(_comparison_record(each) for each in found)
    return Table(
        headers, rows, frozenset({0, 1, 2, 4, 5}), name="comparisons", title="Every comparison", records=records, shown="folded"
    )


def _comparison_record(each: Comparison) -> dict[str, Scalar]:
    value = each.difference
    return {
        "arm": each.arm.name,
        "against": each.against,
        "basis": each.basis,
        "difference": value.value if value is not None else None,
        "low": value.low if value is not None else None,
        "high": value.high if value is not None else None,
        "over": each.over,
        "pairs": len(each.by_seed),
        "outcome": each.outcome,
        "why": each.why,
    }


def cells_table(arms: Arms) -> Table:
    """Every run with its seed, its state and what it reached; diverged, failed and left-out ones are results too."""
    headers = ("run", "arm", "seed", "state", "bits per byte", "note")
    rows, records = [], []
    for member in arms.members:
        cell = member.cell
        seed = str(cell.seed) if cell.seed is not None else formats.UNKNOWN
        rows.append((cell.name, cell.arm, seed, member.status, formats.fixed(member.bits_per_byte), cell.note))
        settings: dict[str, Scalar] = {f"setting {axis}": formats.pairs(value) for axis, value in cell.settings.items()}
        costs: dict[str, Scalar] = {key: finite(member.spent.get(key)) for key in _COST_KEYS}
        state: dict[str, Scalar] = {
            "run": cell.name,
            "arm": cell.arm,
            "seed": cell.seed,
            "state": member.status,
            "note": cell.note,
        }
        kl = finite(member.summary.get("kl_to_teacher_nats"))
        records.append({**state, **settings, "bits_per_byte": member.bits_per_byte, "kl_to_teacher_nats": kl, **costs})
    marks = {row: "muted" for row, member in enumerate(arms.members) if not member.finished}
    words = frozenset({0, 1, 3, 5})
    return Table(headers, tuple(rows), words, marks, name="cells", title="Every run", records=tuple(records), shown="folded")


_COST_KEYS = ("step", "tokens", "seconds", "student_flops", "teacher_flops", "bytes_read")


def cost_table(arms: Arms) -> Table:
    """What a run of every arm has spent, the time of a step beside its control's, and what the whole study has spent."""
    headers = ("arm", "steps", "tokens", "seconds", "tokens/s", "step time", "student FLOPs", "teacher FLOPs", "bytes read")
    rows = [_cost_row(arm, arms) for arm in arms]
    total = {key: sum(finite(member.spent.get(key)) or 0.0 for member in arms.members) for key in _COST_KEYS}
    if len(arms.members) > 1:
        rows.append(
            (
                f"all {len(arms.members)} runs",
                formats.count(total["step"]),
                formats.count(total["tokens"]),
                formats.seconds(total["seconds"]),
                "",
                "",
                formats.power(total["student_flops"]),
                formats.power(total["teacher_flops"]),
                formats.size(total["bytes_read"]),
            )
        )
    records = tuple(_cost_record(arm) for arm in arms)
    return Table(headers, tuple(rows), marks=_marks(list(arms), arms, len(rows) > len(arms)), name="costs", records=records)


def _cost_record(arm: Arm) -> dict[str, Scalar]:
    return {"arm": arm.name, "runs": len(arm.finished), **{key: arm.spent(key) for key in _COST_KEYS}}


def _cost_row(arm: Arm, arms: Arms) -> tuple[str, ...]:
    tokens, seconds = arm.spent("tokens"), arm.spent("seconds")
    pairs = [pair for pair in nearest_pairs(arm, arms) if pair[0].finished and pair[1].finished]
    mine, theirs = (sum(_step_seconds(pair[side].summary) for pair in pairs) for side in (0, 1))
    name = name_of(arm, arms) if arm.bits is not None else f"{name_of(arm, arms)}, {arm.status}"
    return (
        name,
        formats.count(arm.spent("step")),
        formats.count(tokens),
        formats.seconds(seconds),
        formats.count(tokens / seconds if tokens is not None and seconds else None),
        formats.ratio(mine, theirs) if pairs else formats.UNKNOWN,
        formats.power(arm.spent("student_flops")),
        formats.power(arm.spent("teacher_flops")),
        formats.size(arm.spent("bytes_read")),
    )


def _step_seconds(summary: Mapping[str, Any]) -> float:
    return float(summary["seconds"]) / summary["step"] if summary.get("step") else 0.0


def equal_table(arms: Arms) -> Table:
    """Every arm minus its control, read off the curves at equal tokens, seconds and FLOPs, in bits per byte."""
    share = "" if arms.teacher_share == 1 else f"{arms.teacher_share:.0%} of "
    headers = ("arm", "equal tokens", "equal seconds", "equal student FLOPs", f"equal student + {share}teacher FLOPs")
    others = [arm for arm in arms if nearest_pairs(arm, arms)]
    rows = tuple((arm.name, *(_equal_cell(arm, arms, cost) for cost in COSTS)) for arm in others)
    records = tuple(_equal_record(arm, arms) for arm in others)
    return Table(headers, rows, marks=_marks(others, arms, False), name="equal-cost", records=records)


def _equal_cell(arm: Arm, arms: Arms, cost: Cost) -> str:
    pairs = nearest_pairs(arm, arms)
    point = equal_reading(pairs, cost, arms=arms)
    if point is None:
        return arm.status if not arm.finished else "not comparable"
    if point.difference is None:
        return f"no overlap ({at_cost(cost, point.at)})"
    final, _, _ = paired([pair for pair in pairs if pair[0].finished and pair[1].finished])
    ends = point.read_early == "neither" and final is not None
    outcome = outcome_of(final) if ends else outcome_at(point, final.half_width if final is not None else None)
    return f"{formats.signed(point.difference.value)}, {_WORDS[outcome]} ({at_cost(cost, point.at)})"


def _equal_record(arm: Arm, arms: Arms) -> dict[str, Scalar]:
    record: dict[str, Scalar] = {"arm": arm.name}
    for cost in COSTS:
        point = equal_reading(nearest_pairs(arm, arms), cost, arms=arms)
        value = point.difference if point is not None else None
        record |= {
            f"{cost}_at": point.at if point is not None else None,
            f"{cost}_difference": value.value if value is not None else None,
            f"{cost}_low": value.low if value is not None else None,
            f"{cost}_high": value.high if value is not None else None,
            f"{cost}_read_early": point.read_early if point is not None else None,
        }
    return record


def at_cost(cost: Cost, value: float) -> str:
    """A cost in a table's cell."""
    if cost == "seconds":
        return formats.seconds(value)
    return formats.count(value) if cost == "tokens" else formats.power(value)


def curve_table(arms: Arms) -> Table:
    """Every evaluation of every run, for files."""
    records = tuple(
        {"run": member.name, "arm": member.cell.arm, "seed": member.cell.seed, **_evaluation(record)}
        for member in arms.members
        if member.run is not None
        for record in member.run.events("eval")
    )
    return Table(("run",), tuple((str(record["run"]),) for record in records), name="curves", records=records, shown="file")


def _evaluation(record: Mapping[str, Any]) -> dict[str, Scalar]:
    return {key: finite(record.get(key)) for key in (*_COST_KEYS, "bits_per_byte", "kl_to_teacher_nats")}


def learns_from(arm: Arm) -> str:
    """The objective and the signal in a few words."""
    run = arm.first.run
    if run is None:
        return formats.UNKNOWN
    if not arm.has_teacher:
        return "the text alone"
    assert run.recipe.signal is not None, "a recipe checks that an objective with a teacher has a signal"
    return f"{run.recipe.objective.kind} on {run.recipe.signal_slug}{' (live)' if run.recipe.signal.live else ''}"


def name_of(arm: Arm, arms: Arms) -> str:
    """An arm's name, and whether others are held against it."""
    return f"{arm.name} (control)" if arms.is_control(arm) else arm.name


def _marks(rows: Sequence[Arm], arms: Arms, last: bool) -> dict[int, str]:
    marks = {row: "control" for row, arm in enumerate(rows) if arms.is_control(arm)}
    marks |= {row: "muted" for row, arm in enumerate(rows) if not arm.finished}
    return marks | ({len(rows): "muted"} if last else {})
