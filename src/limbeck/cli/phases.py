"""`limbeck train RECIPE --dry-run --time-phases`: what a step's phases take here, and where its teacher should run."""

from collections.abc import Sequence
from dataclasses import asdict

from limbeck.cli.output import emit, table
from limbeck.plan.placement import Phases, Placed, expected
from limbeck.spec.recipe import Recipe


def show_phases(recipe: Recipe, *, devices: int | None, as_json: bool) -> None:
    """Time the phases and print what every placement is expected to take, on so many devices or as many as processes."""
    from limbeck.train.time_phases import time_phases

    timed = time_phases(recipe)
    number = devices or timed.processes
    placed = expected(timed.phases, devices=number, tokens=timed.tokens)
    warning = _warning(recipe, placed, devices=number)
    values = {
        "phases": asdict(timed.phases),
        "tokens": timed.tokens,
        "processes": timed.processes,
        "devices": number,
        "placements": [asdict(each) for each in placed],
        "warning": warning,
    }
    lines = [*_measured(timed.phases, timed.tokens), "", *_placements(placed, devices=number)]
    emit(values, as_json=as_json, lines=[*lines, *([warning] if warning else [])])


def _measured(phases: Phases, tokens: float) -> list[str]:
    rows = [[name, f"{seconds:.4f}", f"{100 * seconds / phases.total:.0f}"] for name, seconds in asdict(phases).items()]
    return [*table(["phase", "device-seconds", "%"], rows), f"of a step of {tokens:,.0f} tokens"]


def _placements(placed: Sequence[Placed], *, devices: int) -> list[str]:
    rows = [
        [each.kind, f"{each.teachers}", f"{each.idle}", f"{each.step_seconds:.4f}", f"{each.tokens_per_second:,.0f}"]
        for each in placed
    ]
    found = table([f"on {devices} devices", "teach alone", "idle", "seconds a step", "tokens a second"], rows)
    return [*found, f"fastest: {_settings(placed[0])}"]


def _settings(placed: Placed) -> str:
    pool = f" placement.teachers={placed.teachers}" if placed.kind == "pool" else ""
    return f"placement.kind={placed.kind}{pool}"


def _warning(recipe: Recipe, placed: Sequence[Placed], *, devices: int) -> str | None:
    """Where a step's sequences cannot be shared out among those that train."""
    students = {each.kind: devices - each.teachers - each.idle for each in placed}[placed[0].kind]
    if recipe.batch.sequences % students == 0:
        return None
    return f"batch.sequences={recipe.batch.sequences} is not a multiple of the {students} processes that train: change it"
