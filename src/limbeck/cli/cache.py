"""`limbeck cache write|info|verify`: signal stores."""

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.arguments import Json, Overrides, RecipeName
from limbeck.cli.output import emit
from limbeck.errors import StoreError
from limbeck.spec.load import load_recipe, parse_overrides

app = typer.Typer(no_args_is_help=True)
StorePath = Annotated[Path, typer.Argument(help="The folder of a signal store.", metavar="STORE")]


@app.command("write")
def write(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Let the recipe's teacher read the training documents and store its signal. Resumes what an earlier call left."""
    from limbeck.signals.manifest import info as read_info
    from limbeck.study.stores import write_recipe_stores

    paths = write_recipe_stores([load_recipe(recipe, parse_overrides(overrides or []))])
    facts = read_info(paths[0])
    emit(facts, as_json=as_json, lines=_lines(facts))


@app.command("info")
def info(store: StorePath, as_json: Json = False) -> None:
    """What a store is: kind, size, fidelity, identity."""
    from limbeck.signals.manifest import info as read_info

    facts = read_info(store)
    emit(facts, as_json=as_json, lines=_lines(facts))


@app.command("verify")
def verify(store: StorePath, as_json: Json = False) -> None:
    """Read every byte of a store and compare it with its checksums."""
    from limbeck.progress import progress
    from limbeck.signals.store import verify as verify_store

    with progress(f"verifying {store}", total=1) as advance:
        done = 0.0

        def show(num_bytes: int, total: int) -> None:
            nonlocal done
            advance(num_bytes / total - done)
            done = num_bytes / total

        report = verify_store(store, progress=show)
    if report.problems:
        others = len(report.problems) - 1
        raise StoreError(report.problems[0] + (f" (problems in all: {others + 1})" if others else ""))
    values = {"path": str(store), "shards": report.shards, "bytes": report.bytes, "intact": True}
    emit(values, as_json=as_json, lines=[f"{store}: intact ({report.shards} shards, {report.bytes:,} bytes)"])


def _lines(facts: dict[str, object]) -> list[str]:
    return [f"{key}: {value}" for key, value in facts.items()]
