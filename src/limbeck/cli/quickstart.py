"""`limbeck quickstart`: a real teacher, real text, one tiny student four ways, and a report."""

from typing import Annotated, Any

import typer

from limbeck.cli.arguments import Json, Overrides
from limbeck.cli.output import emit
from limbeck.spec.load import load_study, parse_overrides


def quickstart(
    overrides: Overrides = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for stores, runs and report.")] = "out/quickstart",
    as_json: Json = False,
) -> None:
    """Distil SmolLM2-135M-Instruct into a tiny OLMo-3-style student beside its no-teacher control. Resumable, offline."""
    from limbeck.study.run import run_study

    result = run_study(load_study("quickstart"), output=output, overrides=parse_overrides(overrides or []))
    values = result.as_json()
    lines = [_arm_line(arm) for arm in values["cells"]]
    emit(values, as_json=as_json, lines=[*lines, f"report: {result.report}"])


def _arm_line(arm: dict[str, Any]) -> str:
    if arm["bits_per_byte"] is None:
        return f"{arm['cell']:>12}: diverged"
    kl = f", KL to teacher {arm['kl_to_teacher_nats']:.3f} nats" if arm["kl_to_teacher_nats"] is not None else ""
    return f"{arm['cell']:>12}: {arm['bits_per_byte']:.4f} bits per byte{kl}, {arm['seconds']:.0f} s"
