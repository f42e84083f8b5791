"""`limbeck study run STUDY [-o FOLDER] [key=value…]`: every arm of a study, in the order in which they can be trained."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli.arguments import DEFAULT_DEVICE, DEFAULT_UTILISATION, Json, Overrides
from limbeck.cli.output import emit, human, table
from limbeck.cli.show import teacher_config
from limbeck.plan.devices import find_device, sustained_flops_per_second
from limbeck.plan.study_price import ArmPrice, StudyPrice, price_study
from limbeck.runs import is_finished
from limbeck.signals.places import is_published
from limbeck.spec.load import load_study, parse_overrides
from limbeck.spec.recipe import Recipe

if TYPE_CHECKING:
    from limbeck.study.run import StudyResult

app = typer.Typer(no_args_is_help=True)


@app.command("run")
def run(
    study: Annotated[str, typer.Argument(help="A shipped study's name or a YAML file.", metavar="STUDY")],
    overrides: Overrides = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder for stores, runs and reports; default: out/NAME.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run, in order and priced; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study, or continue one that was stopped: teachers first, finished parts never again."""
    from limbeck.study.expand import expand
    from limbeck.study.run import run_study

    loaded, settings = load_study(study), parse_overrides(overrides or [])
    folder = output or f"out/{loaded.name}"
    if dry_run:
        _show_plan(expand(loaded, output=folder, overrides=settings), as_json=as_json)
        return
    result = run_study(loaded, output=folder, overrides=settings)
    values = result.as_json()
    emit(values, as_json=as_json, lines=_result_lines(result, values["arms"]))


def _result_lines(result: "StudyResult", arms: list[dict[str, Any]]) -> list[str]:
    width = max(len(arm["arm"]) for arm in arms)
    lines = [f"{arm['arm']:>{width}}: {_outcome(arm)}" for arm in arms]
    return [*lines, *(f"report: {page}" for page in result.reports.values())]


def _outcome(arm: dict[str, Any]) -> str:
    if not Path(arm["run"]).is_dir():
        return "left out, its teacher diverged"
    if arm["bits_per_byte"] is None:
        return "diverged"
    kl = f", KL to teacher {arm['kl_to_teacher_nats']:.3f} nats" if arm["kl_to_teacher_nats"] is not None else ""
    return f"{arm['bits_per_byte']:.4f} bits per byte{kl}, {arm['seconds']:.0f} s"


def _show_plan(recipes: dict[str, Recipe], *, as_json: bool) -> None:
    """What is still to be run, in order; the price is of that alone."""
    from limbeck.study.expand import teacher_arms, waves

    taught_by, order = teacher_arms(recipes), [arm for wave in waves(recipes) for arm in wave]
    finished = [arm for arm in order if is_finished(recipes[arm].run_path)]
    wanted = {recipe.store_path for arm, recipe in recipes.items() if recipe.uses_store and arm not in finished}
    lacking = {path for path in wanted if not is_published(path)}
    price = price_study(
        recipes,
        taught_by=taught_by,
        configs={arm: teacher_config(recipe) for arm, recipe in recipes.items() if arm not in taught_by},
        flops_per_second=sustained_flops_per_second(find_device(DEFAULT_DEVICE), utilisation=DEFAULT_UTILISATION),
        without_stores={recipe.store_path for recipe in recipes.values()} - lacking,
    )
    arms = sorted((arm for arm in price.arms if arm.arm not in finished), key=lambda arm: order.index(arm.arm))
    remaining = replace(price, arms=tuple(arms))
    emit({**remaining.as_json(), "finished": finished}, as_json=as_json, lines=_plan_lines(remaining, finished))


def _plan_lines(price: StudyPrice, finished: list[str]) -> list[str]:
    headers = ("arm", "learns from", "parameters", "tokens", "training FLOPs")
    return [
        *(table(headers, [_row(arm) for arm in price.arms]) if price.arms else []),
        *(
            f"store {store.path}: {_shown(store.tokens)} tokens, {_shown(store.flops)} FLOPs, {_shown(store.bytes)} bytes"
            for store in price.stores
        ),
        f"to run: {len(price.arms)} arms, {len(finished)} finished; {_shown(price.training_flops)} FLOPs of training + "
        f"{_shown(price.scoring_flops)} of scoring = {_shown(price.total_flops)}, {_shown(price.hours)} hours at "
        f"{price.flops_per_second:.3g} FLOP/s",
    ]


def _row(arm: ArmPrice) -> tuple[str, ...]:
    return arm.arm, arm.teacher or "text", human(arm.params), _shown(arm.tokens), _shown(arm.student_flops)


def _shown(amount: float | None) -> str:
    return human(amount) if amount is not None else "unknown"
