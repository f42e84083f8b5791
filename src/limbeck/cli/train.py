"""`limbeck train RECIPE [key=value…]`."""

from typing import Annotated

import typer

from limbeck.cli.arguments import Json, Overrides, RecipeName
from limbeck.cli.output import emit
from limbeck.errors import SpecError
from limbeck.spec.load import load_recipe, parse_overrides


def train_recipe(
    recipe: RecipeName,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Resolve the recipe and price it; train nothing.")] = False,
    time_phases: Annotated[
        bool,
        typer.Option(
            "--time-phases",
            help="With --dry-run: take a few real steps, throw them away, and say where a live teacher should run.",
        ),
    ] = False,
    devices: Annotated[
        int | None, typer.Option(min=1, help="With --time-phases: for how many devices; by default one for each process.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a student. Run the same command again to continue a run that was stopped."""
    if (time_phases and not dry_run) or (devices is not None and not time_phases):
        raise SpecError("--time-phases belongs to --dry-run, and --devices to --time-phases")
    resolved = load_recipe(recipe, parse_overrides(overrides or []))
    if time_phases:
        from limbeck.cli.phases import show_phases

        show_phases(resolved, devices=devices, as_json=as_json)
        return
    if dry_run:
        from limbeck.cli.show import show_recipe

        show_recipe(resolved, as_json=as_json)
        return
    from limbeck.runs import open_run
    from limbeck.train.train import train

    path = train(resolved)
    summary = open_run(path).summary or {}
    shown = {key: value for key, value in summary.items() if key != "bits_per_byte_by_document"}
    emit(
        {"run": str(path), **shown},
        as_json=as_json,
        lines=[*(f"{key}: {value}" for key, value in shown.items()), f"run: {path}"],
    )
