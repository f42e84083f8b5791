"""Evaluations as tables: any metric over seeds, its paired difference to the control, the teacher's; and tables of their own.

A kind of evaluation that has more to tell than flat metrics puts `tables` into its details, {title: {headers, rows}}; they are
shown for one run of every arm and written for all.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.eval_results import EvalResult, Metric
from limbeck.report import formats
from limbeck.report.arms import Arm, Arms, Member
from limbeck.report.blocks import Scalar, Table
from limbeck.report.comparisons import Pair, cost_words
from limbeck.report.eval_pairs import by_question, eval_pairs, is_time, same_machine
from limbeck.report.seeds import mean_estimate, spread
from limbeck.report.statistics import Estimate

Teachers = Mapping[str, Mapping[str, EvalResult]]


def eval_names(arms: Arms, teachers: Teachers, *, kinds: Sequence[str] = ()) -> list[str]:
    """The evaluations that any run or teacher has, in order of appearance; of these kinds alone where some are named."""
    results = [member.cell.evals for member in arms.members] + list(teachers.values())
    found = {name: result.kind for each in results for name, result in each.items()}
    return [name for name, kind in found.items() if not kinds or kind in kinds]


def metric_table(name: str, arms: Arms, teachers: Teachers) -> Table | None:
    """Every metric of an evaluation: mean ± spread over seeds, or of one seed with its own interval; teachers below.

    Seeds of an arm that were asked otherwise stand in rows of their own.
    """
    groups = [(arm, words, found) for arm in arms for words, found in by_question(_results(arm, name)).items()]
    keys = _metric_names(name, arms, teachers)
    if not keys:
        return None
    rows = [
        (f"{arm.name} ({words})" if words else arm.name, str(len(found)), *(_metric_cell(found, key) for key in keys))
        for arm, words, found in groups
    ]
    taught = [(teacher, found[name]) for teacher, found in teachers.items() if name in found]
    rows += [(f"teacher {teacher}", "", *(_one(found.metrics.get(key)) for key in keys)) for teacher, found in taught]
    headers = ("arm", "n", *(_header(key, name, arms, teachers) for key in keys))
    marks = {row: "control" for row, (arm, _, _) in enumerate(groups) if arms.is_control(arm)}
    marks |= dict.fromkeys(range(len(groups), len(rows)), "muted")
    records = [_metric_record(member.cell.arm, member.name, found, keys) for member, found in _all(arms, name)]
    records += [_metric_record("teacher", teacher, found, keys) for teacher, found in taught]
    return Table(headers, tuple(rows), marks=marks, name=f"eval-{slug(name)}", title=name, records=tuple(records))


def metric_difference_table(name: str, arms: Arms) -> Table | None:
    """Every metric minus the control's: the mean over paired seeds with its interval; None where nothing is paired.

    Pairs count whose results compare (`eval_pairs`); a row says what is left out, and what was spent on either side.
    """
    keys = _metric_names(name, arms, {})
    rows, records = [], []
    for arm in arms:
        found = eval_pairs(name, arm, arms)
        if found is None:
            continue
        pairs, timed = found.pairs, _on_one_machine(found.pairs, name)
        uses = {key: timed if is_time(key) else pairs for key in keys}
        estimates = {key: _metric_difference(uses[key], name, key) for key in keys}
        costs = cost_words(pairs, arms) if pairs else formats.UNKNOWN
        machines = len(pairs) - len(timed) if any(map(is_time, keys)) else 0
        left_out = [*found.left_out, *([f"times of {formats.plural(machines, 'pair')}: other machines"] if machines else [])]
        row = (arm.name, found.against, costs, str(len(pairs)))
        rows.append((*row, *(_signed(estimates[key]) for key in keys), "; ".join(left_out)))
        records += [
            {**_difference_record(arm.name, found.against, len(uses[key]), key, estimate), "costs": costs}
            for key, estimate in estimates.items()
        ]
    if not rows:
        return None
    headers = ("arm", "against", "costs", "n", *(_header(key, name, arms, {}) for key in keys), "left out")
    words = {0, 1, 2, len(headers) - 1}
    if not any(row[-1] for row in rows):
        headers, rows, words = headers[:-1], [row[:-1] for row in rows], {0, 1, 2}
    title = f"{name}: minus what it is held against [95% over seeds]"
    return Table(
        headers, tuple(rows), frozenset(words), name=f"eval-{slug(name)}-differences", title=title, records=tuple(records)
    )


def judged_differences(arms: Arms) -> int:
    """How many differences of metrics have an interval, over all evaluations."""
    tables = [table for name in eval_names(arms, {}) if (table := metric_difference_table(name, arms)) is not None]
    return sum(record["low"] is not None for table in tables for record in table.records)


def _on_one_machine(pairs: Sequence[Pair], name: str) -> tuple[Pair, ...]:
    return tuple((one, other) for one, other in pairs if same_machine(one.cell.evals[name], other.cell.evals[name]))


def _all(arms: Arms, name: str) -> list[tuple[Member, EvalResult]]:
    return [(member, member.cell.evals[name]) for member in arms.members if name in member.cell.evals]


def _results(arm: Arm, name: str) -> list[EvalResult]:
    return [member.cell.evals[name] for member in arm.members if name in member.cell.evals]


def _metric_names(name: str, arms: Arms, teachers: Teachers) -> list[str]:
    results = [found for _, found in _all(arms, name)] + [found[name] for found in teachers.values() if name in found]
    return list(dict.fromkeys(key for result in results for key in result.metrics))


def _header(key: str, name: str, arms: Arms, teachers: Teachers) -> str:
    """The metric, and which way is better."""
    results = [found for _, found in _all(arms, name)] + [found[name] for found in teachers.values() if name in found]
    better = next((found.metrics[key].better for found in results if key in found.metrics), None)
    arrow = {"lower": " ↓", "higher": " ↑"}.get(better or "", "")
    return f"{key.replace('_', ' ')}{arrow}"


def _metric_cell(results: Sequence[EvalResult], key: str) -> str:
    metrics = [found.metrics[key] for found in results if key in found.metrics]
    if len(metrics) < 2:
        return _one(metrics[0] if metrics else None)
    found = spread([metric.value for metric in metrics])
    assert found is not None and found.sd is not None, "two seeds or more have a spread"
    text = f"{formats.significant(found.mean)} ± {formats.significant(found.sd, 2)}"
    return text if len(metrics) == len(results) else f"{text} (n {len(metrics)})"


def _one(metric: Metric | None) -> str:
    if metric is None:
        return formats.UNKNOWN
    if metric.low is None or metric.high is None:
        return formats.significant(metric.value)
    return f"{formats.significant(metric.value)} [{formats.significant(metric.low)}, {formats.significant(metric.high)}]"


def _metric_difference(pairs: Sequence[Pair], name: str, key: str) -> Estimate | None:
    having = [pair for pair in pairs if all(key in each.cell.evals[name].metrics for each in pair)]
    if not having:
        return None
    values = [one.cell.evals[name].metrics[key].value - other.cell.evals[name].metrics[key].value for one, other in having]
    independent = len({other.name for _, other in having}) == len(having)
    return mean_estimate(values) if independent else Estimate(sum(values) / len(values))


def _signed(estimate: Estimate | None) -> str:
    if estimate is None:
        return formats.UNKNOWN
    value = formats.significant(estimate.value, sign=True)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{formats.significant(estimate.low, sign=True)}, {formats.significant(estimate.high, sign=True)}]"


def _metric_record(arm: str, run: str, result: EvalResult, keys: Sequence[str]) -> dict[str, Scalar]:
    record: dict[str, Scalar] = {"arm": arm, "run": run, "kind": result.kind}
    for key in keys:
        metric = result.metrics.get(key)
        record |= {
            key: metric.value if metric is not None else None,
            f"{key}_low": metric.low if metric is not None else None,
            f"{key}_high": metric.high if metric is not None else None,
        }
    return record


def _difference_record(arm: str, against: str, pairs: int, key: str, estimate: Estimate | None) -> dict[str, Scalar]:
    return {
        "arm": arm,
        "against": against,
        "pairs": pairs,
        "metric": key,
        "difference": estimate.value if estimate is not None else None,
        "low": estimate.low if estimate is not None else None,
        "high": estimate.high if estimate is not None else None,
    }


def detail_tables(name: str, arms: Arms, teachers: Teachers) -> list[Table]:
    """The tables in an evaluation's details: of one run of every arm under one another, the teachers' below."""
    shown = [(arm.name, _first(arm, name)) for arm in arms if _results(arm, name)]
    shown += [(f"teacher {teacher}", found[name]) for teacher, found in teachers.items() if name in found]
    titles = dict.fromkeys(title for _, result in shown for title in _tables(result))
    found = [_detail_table(name, title, shown, arms) for title in titles]
    return [table for table in found if table is not None]


def _first(arm: Arm, name: str) -> EvalResult:
    finished = [member for member in arm.finished if name in member.cell.evals]
    return finished[0].cell.evals[name] if finished else _results(arm, name)[0]


def _detail_table(name: str, title: str, shown: Sequence[tuple[str, EvalResult]], arms: Arms) -> Table | None:
    inside = [(owner, _tables(result)[title]) for owner, result in shown if title in _tables(result)]
    headers = inside[0][1]["headers"]
    rows = tuple((owner, *map(_shown, row)) for owner, table in inside if table["headers"] == headers for row in _rows(table))
    records = tuple(
        {"arm": member.cell.arm, "run": member.name, **dict(zip(headers, map(_scalar, row), strict=True))}
        for member, result in _all(arms, name)
        if (table := _tables(result).get(title)) is not None and table["headers"] == headers
        for row in _rows(table)
    )
    words = frozenset({0, *(place + 1 for place in range(len(headers)) if _holds_words(place, inside))})
    file = f"eval-{slug(name)}-{slug(title)}"
    return Table(("arm", *headers), rows, words, name=file, title=f"{name}: {title}", records=records) if rows else None


def _tables(result: EvalResult) -> Mapping[str, Any]:
    """Those that are tables: headers, and rows of as many cells."""
    given = result.details.get("tables")
    if not isinstance(given, Mapping):
        return {}
    return {
        str(title): {**table, "headers": [str(header) for header in table["headers"]]}
        for title, table in given.items()
        if isinstance(table, Mapping) and isinstance(table.get("headers"), list) and isinstance(table.get("rows"), list)
    }


def _rows(table: Mapping[str, Any]) -> list[list[Any]]:
    return [row for row in table["rows"] if isinstance(row, list) and len(row) == len(table["headers"])]


def _holds_words(place: int, tables: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    return any(isinstance(row[place], str) for _, table in tables for row in _rows(table))


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return formats.pairs(value)
    return formats.count(value) if isinstance(value, int) else formats.significant(value)


def _scalar(value: Any) -> Scalar:
    return value if value is None or isinstance(value, str | int | float | bool) else formats.pairs(value)


def slug(text: str) -> str:
    """A name as part of a file's: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "unnamed"
