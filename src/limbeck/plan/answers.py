"""What `limbeck plan` answers, as plain values for machines: one function a question.

Keys carry their units; `verdict` is a sentence, `warnings` are sentences. The mathematics is in `allocate` and `compare`.
"""

from dataclasses import asdict
from typing import Any

from limbeck.plan.allocate import (
    BEST_CASE,
    SCENARIOS,
    Alone,
    Distilled,
    Size,
    Spending,
    alone,
    best_teacher,
    distillation_of,
    distilled,
    loss_alone,
)
from limbeck.plan.compare import Cost, Crossover, crossover, efficiency
from limbeck.plan.family import short
from limbeck.plan.laws import Laws
from limbeck.plan.verdict import mistrust, size_outside, verdict


def of_budget(student: Size, *, flops: float, laws: Laws) -> dict[str, Any]:
    """What a compute budget buys: training alone, and the four scenarios of paying for a teacher."""
    by_itself = alone(student, flops=flops, laws=laws)
    values = {**about(student, laws), "flops": flops, "supervised": asdict(by_itself)}
    if laws.distillation is None:
        says = f"train without a teacher: {by_itself.loss_nats:.4f} nats; {laws.name} says nothing about distillation"
        return {**values, "verdict": says, "warnings": list(size_outside(student, laws.fitted))}
    scenarios = {scenario.name: distilled(student, flops=flops, scenario=scenario, laws=laws) for scenario in SCENARIOS}
    return {
        **values,
        **{name: asdict(result) for name, result in scenarios.items()},
        "verdict": verdict(by_itself, scenarios),
        "warnings": mistrust(student, {"supervised": by_itself, **scenarios}, fitted=laws.fitted),
    }


def of_tokens(student: Size, *, tokens: float, laws: Laws) -> dict[str, Any]:
    """The best teacher for a student on so many tokens: the bottom of the U, and the teachers that beat training alone."""
    by_itself = Alone(loss_alone(student.params, tokens, laws=laws), tokens)
    teacher = best_teacher(student, tokens=tokens, laws=laws)
    reached = float(distillation_of(laws).loss(student.params, tokens, teacher.loss_nats))
    best = Distilled(
        reached,
        tokens,
        teacher.params,
        teacher.tokens,
        teacher.loss_nats,
        Spending(tokens * student.training_flops_per_token, 0, 0),
    )
    gain = by_itself.loss_nats - reached
    weakest = _weakest_useful_teacher(student, tokens=tokens, laws=laws, target=by_itself.loss_nats)
    says = (
        f"distil from a teacher of {teacher.loss_nats:.3f} nats: {reached:.4f} against {by_itself.loss_nats:.4f} alone; "
        f"teachers up to {weakest:.3f} nats help"
        if gain > 0 and weakest is not None
        else f"train without a teacher: {by_itself.loss_nats:.4f} nats, {reached:.4f} with the best teacher there could be"
    )
    return {
        **about(student, laws),
        "tokens": tokens,
        "supervised": asdict(by_itself),
        "best_teacher": {
            "teacher_loss_nats": teacher.loss_nats,
            "teacher_params": teacher.params,
            "teacher_tokens": teacher.tokens,
            "loss_nats": reached,
        },
        "weakest_useful_teacher_loss_nats": weakest,
        "verdict": says,
        "warnings": mistrust(student, {"supervised": by_itself, "best_teacher": best}, fitted=laws.fitted),
    }


def of_loss(student: Size, *, loss_nats: float, laws: Laws) -> dict[str, Any]:
    """What a target loss costs, alone and in each scenario, and the ratios to training alone."""
    result = efficiency(student, loss_nats=loss_nats, laws=laws)
    reachable = {name: cost for name, cost in result.scenarios.items() if cost is not None}
    all_costs = {"supervised": result.alone, **result.scenarios}
    results = {name: cost.reached for name, cost in all_costs.items() if cost is not None}
    return {
        **about(student, laws),
        "loss_nats": loss_nats,
        "supervised": _cost(result.alone),
        **{
            name: {**costs, **_ratios(result.ratios(name))} if (costs := _cost(cost)) is not None else None
            for name, cost in result.scenarios.items()
        },
        "verdict": _cheapest(student, loss_nats, result.alone, reachable),
        "warnings": mistrust(student, results, fitted=laws.fitted),
    }


def of_student(student: Size, *, laws: Laws) -> dict[str, Any]:
    """The compute from which training alone is at least as good as each scenario; 'always' or 'never' where there is none."""
    found = {scenario.name: crossover(student, scenario, laws=laws) for scenario in SCENARIOS}
    crossings = {name: crossing for name, crossing in found.items() if isinstance(crossing, Crossover)}
    results: dict[str, Alone | Distilled] = {name: crossing.distilled for name, crossing in crossings.items()}
    results |= {f"supervised beside {name}": crossing.alone for name, crossing in crossings.items()}
    match found[BEST_CASE.name]:
        case Crossover(flops=flops, alone=by_itself):
            says = (
                f"distil below {flops:.3g} FLOPs ({short(by_itself.student_tokens)} tokens alone) if the teacher costs "
                "nothing; train without a teacher above"
            )
        case "never":
            says = "distil at any budget if the teacher costs nothing"
        case _:
            says = "train without a teacher at any budget"
    return {
        **about(student, laws),
        "supervised_overtakes": {
            name: _crossing(crossing) if isinstance(crossing, Crossover) else crossing for name, crossing in found.items()
        },
        "verdict": says,
        "warnings": mistrust(student, results, fitted=laws.fitted),
    }


def _crossing(crossing: Crossover) -> dict[str, float]:
    return {
        "flops": crossing.flops,
        "loss_nats": crossing.distilled.loss_nats,
        "supervised_tokens": crossing.alone.student_tokens,
        "student_tokens": crossing.distilled.student_tokens,
    }


def about(student: Size, laws: Laws) -> dict[str, Any]:
    """What every answer begins with."""
    return {
        "law": laws.name,
        "student": {"name": student.name, "params": student.params, "flops_per_token": student.flops_per_token},
    }


def _weakest_useful_teacher(student: Size, *, tokens: float, laws: Laws, target: float) -> float | None:
    """The highest teacher loss at which the student still beats `target`; None where no teacher does."""
    law = distillation_of(laws)
    low, high = best_teacher(student, tokens=tokens, laws=laws).loss_nats, target
    if law.loss(student.params, tokens, low) >= target:
        return None
    for _ in range(60):  # beyond the best teacher the loss rises, up to the teacher's own
        middle = (low + high) / 2
        low, high = (middle, high) if law.loss(student.params, tokens, middle) < target else (low, middle)
    return low


def _cost(cost: Cost | None) -> dict[str, float] | None:
    return None if cost is None else {"flops": cost.flops, "tokens": cost.tokens}


def _ratios(ratios: tuple[float, float] | None) -> dict[str, float | None]:
    compute, tokens = ratios or (None, None)
    return {"flops_over_supervised": compute, "tokens_over_supervised": tokens}


def _cheapest(student: Size, loss_nats: float, by_itself: Cost | None, reachable: dict[str, Cost]) -> str:
    if by_itself is None and not reachable:
        return f"out of reach: {student.name} does not get to {loss_nats:g} nats, with or without a teacher"
    name, cost = min(reachable.items(), key=lambda item: item[1].flops, default=("", None))
    if by_itself is None:
        assert cost is not None, "something reaches the loss"
        return f"distil: only that reaches {loss_nats:g} nats ({name}, {cost.flops:.3g} FLOPs)"
    if cost is None or cost.flops >= by_itself.flops:
        return f"train without a teacher: {by_itself.flops:.3g} FLOPs reach {loss_nats:g} nats, distillation needs more"
    cheaper = [name for name, cost in reachable.items() if cost.flops < by_itself.flops]
    return (
        f"distil where cheaper ({', '.join(cheaper)}): {name} reaches {loss_nats:g} nats for "
        f"{cost.flops / by_itself.flops:.2g} of the {by_itself.flops:.3g} FLOPs that training without a teacher needs"
    )
