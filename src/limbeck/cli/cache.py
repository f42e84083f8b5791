"""`limbeck cache write|info|verify|diff|fidelity|extend|merge`: signal stores. A STORE is a folder or a URL (`s3://…`)."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.cli.arguments import Json, Overrides, RecipeName
from limbeck.cli.output import emit, table
from limbeck.errors import DataError, StoreError
from limbeck.spec.load import load_recipe, parse_overrides

if TYPE_CHECKING:
    from limbeck.data.tokenizers import Tokenizer
    from limbeck.report.statistics import Estimate
    from limbeck.signals.diff import StoreDiff
    from limbeck.signals.fidelity import Fidelity
    from limbeck.signals.merge import Merged

app = typer.Typer(no_args_is_help=True)
StorePath = Annotated[str, typer.Argument(help="The folder of a signal store, or its URL (s3://…).", metavar="STORE")]


@app.command("write")
def write(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Let the recipe's teacher read the training documents and store its signal. Resumes what an earlier call left.

    Of a curriculum: the stores of all stages; one that several stages name holds the documents of all.

    Under `torchrun` all processes share the work. With store=URL the store is published there when it is complete; processes on
    several machines then need a LIMBECK_CACHE that they share.
    """
    from limbeck.signals.places import info_at
    from limbeck.study.stores import write_recipe_stores

    loaded = load_recipe(recipe, parse_overrides(overrides or []))
    every = [info_at(place) for place in write_recipe_stores([loaded])]
    facts = every[0] if len(every) == 1 else {"stores": every}
    emit(facts, as_json=as_json, lines=[line for each in every for line in _lines(each)])


@app.command("info")
def info(store: StorePath, as_json: Json = False) -> None:
    """What a store is: kind, size, identity."""
    from limbeck.signals.places import info_at

    facts = info_at(store)
    emit(facts, as_json=as_json, lines=_lines(facts))


@app.command("verify")
def verify(store: StorePath, as_json: Json = False) -> None:
    """Read every byte of a store, where it lies, and compare it with its checksums."""
    from limbeck.signals.store import verify as verify_store

    with _showing(f"verifying {store}") as show:
        report = verify_store(store, progress=show)
    if report.problems:
        others = len(report.problems) - 1
        raise StoreError(report.problems[0] + (f" (problems in all: {others + 1})" if others else ""))
    values = {"path": store, "shards": report.shards, "bytes": report.bytes, "intact": True}
    emit(values, as_json=as_json, lines=[f"{store}: intact ({report.shards} shards, {report.bytes:,} bytes)"])


@app.command("diff")
def diff(
    reference: Annotated[str, typer.Argument(help="The store to compare with: p of KL(p || q).", metavar="A")],
    other: Annotated[str, typer.Argument(help="The store that is compared: q.", metavar="B")],
    worst: Annotated[int, typer.Option(min=0, help="How many of the positions that differ most are shown.")] = 5,
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder or hub id: tokens are shown as text and not as ids.", metavar="MODEL")
    ] = None,
    as_json: Json = False,
) -> None:
    """How far one store is from another, position by position over the documents they share, in nats per token."""
    from limbeck.signals.diff import MEANING
    from limbeck.signals.diff import diff as compare
    from limbeck.signals.store import SignalStore

    stores = SignalStore.open(reference), SignalStore.open(other)
    reader = _tokenizer(tokenizer, fingerprint=stores[0].identity.tokenizer)
    with _showing(f"comparing {reference} and {other}") as show:
        found = compare(*stores, worst=worst, progress=show)
    values = {"a": reference, "b": other, "meaning": MEANING[found.measure], **dataclasses.asdict(found)}
    emit(values, as_json=as_json, lines=_diff_lines(found, meaning=MEANING[found.measure], reader=reader))


@app.command("fidelity")
def fidelity(
    store: StorePath,
    reference: Annotated[str | None, typer.Option(help="A store of the teacher in full precision.", metavar="STORE")] = None,
    as_json: Json = False,
) -> None:
    """What stands between teacher and store, in nats per token: truncation, draws, rounding, quantisation, temperature."""
    from limbeck.signals.fidelity import fidelity as measure
    from limbeck.signals.store import SignalStore

    opened = SignalStore.open(store)
    against = SignalStore.open(reference) if reference is not None else None
    with _showing(f"measuring {store}") as show:
        found = measure(opened, reference=against, progress=show)
    values = {"path": store, "reference": reference, **found.as_json()}
    emit(values, as_json=as_json, lines=_fidelity_lines(found))


@app.command("extend")
def extend(store: StorePath, recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Score the recipe's training documents that a store lacks and make them part of it; readers see it as it was till then.

    With a larger signal.draws all documents get more draws, of which the first are those that the store holds.
    """
    from limbeck.paths import is_remote
    from limbeck.study.stores import extend_recipe_store

    if is_remote(store):
        raise StoreError(f"{store} is published and cannot be extended in place; extend the folder it came from")
    merged = extend_recipe_store(Path(store), load_recipe(recipe, parse_overrides(overrides or [])))
    if merged is None:
        emit({"path": store, "added": False}, as_json=as_json, lines=[f"{store}: lacks none of the recipe's documents"])
    else:
        _show_merged(merged, path=store, as_json=as_json, added=True)


@app.command("merge")
def merge(
    stores: Annotated[list[str], typer.Argument(help="Stores that differ in their documents alone.", metavar="STORE...")],
    output: Annotated[str, typer.Option("--output", "-o", help="Where the union goes: a folder or a URL.", metavar="STORE")],
    keep_first: Annotated[
        bool, typer.Option("--keep-first", help="Where rows of a document differ, take the first store's.")
    ] = False,
    as_json: Json = False,
) -> None:
    """One store of the documents of several. A document in more than one is kept once; rows that differ are an error."""
    from limbeck.paths import is_remote
    from limbeck.signals.merge import merge as unite
    from limbeck.signals.remote import outgoing_folder, publish

    merged = unite(stores, outgoing_folder(output), keep_first=keep_first)
    if is_remote(output):
        publish(output)
    _show_merged(merged, path=output, as_json=as_json)


def _show_merged(merged: "Merged", *, path: str, as_json: bool, **facts: Any) -> None:
    values = {**facts, **dataclasses.asdict(merged), "path": path}
    lines = [f"{path}: {merged.documents:,} documents, shards: {merged.shards:,}"]
    if merged.duplicates:
        lines.append(
            f"{merged.duplicates:,} documents were in more than one store and are kept once ({merged.dead_bytes:,} bytes of "
            "them remain inside shards)"
        )
    emit(values, as_json=as_json, lines=lines)


@contextmanager
def _showing(title: str) -> Iterator[Callable[[int, int], None]]:
    """Progress from calls that tell (done, in all)."""
    from limbeck.progress import progress

    with progress(title, total=1) as advance:
        shown = 0.0

        def show(done: int, total: int) -> None:
            nonlocal shown
            advance(done / total - shown)
            shown = done / total

        yield show


def _tokenizer(name: str | None, *, fingerprint: str) -> "Tokenizer | None":
    if name is None:
        return None
    from limbeck.data.tokenizers import load_tokenizer

    loaded = load_tokenizer(name)
    if loaded.fingerprint != fingerprint:
        raise DataError(f"--tokenizer {name} is not the one of these stores; name their teacher's")
    return loaded


def _diff_lines(found: "StoreDiff", *, meaning: str, reader: "Tokenizer | None") -> list[str]:
    lines = [
        f"positions: {found.positions:,} of {found.documents:,} documents in both "
        f"({found.only_in_a:,} more in A, {found.only_in_b:,} more in B)",
        *(f"differs: {difference}" for difference in found.differs or ("documents alone, or nothing",)),
    ]
    if found.kl is None:
        lines.append(f"KL: {meaning}")
    else:
        lines.append(f"KL(A || B): {_interval(found.kl)} nats/token, {meaning}")
        if found.kl.value < 0:
            lines.append("  below zero it says nothing: too much mass lies outside B's head, or there are too few draws")
    if found.standard_error is not None:
        lines.append(f"  standard error of the draws: at most {found.standard_error:.2g} nats")
    if found.median is not None:
        lines.append(f"  median {found.median:.3g}, p99 {found.p99:.3g}, maximum {found.maximum:.3g} nats")
        lines.append(f"  mass of A outside the ids in both: {found.outside_mass:.3g}")
    if found.top1_flips is not None:
        lines.append(f"top-1 flips: {_interval(found.top1_flips, scale=100)} % of the positions")
    if found.entropy_shift is not None:
        lines.append(f"entropy of B less A's: {_interval(found.entropy_shift, sign='+')} nats")
    if found.worst:
        lines += ["", *_worst_lines(found, reader=reader)]
    return lines


def _interval(estimate: "Estimate", *, scale: float = 1.0, sign: str = "") -> str:
    value = f"{estimate.value * scale:{sign}.4g}"
    if estimate.low is None or estimate.high is None:
        return f"{value} (one document: no interval)"
    return f"{value} [{estimate.low * scale:.4g}, {estimate.high * scale:.4g}]"


def _worst_lines(found: "StoreDiff", *, reader: "Tokenizer | None") -> list[str]:
    def shown(token: int, probability: float) -> tuple[str, str]:
        return repr(reader.backend.decode([token])) if reader is not None else str(token), f"{probability:.3f}"

    rows = [
        [
            position.document,
            f"{position.position}",
            f"{position.kl_nats:.3g}",
            *(cell for pair in zip(position.top1, position.top1_probability, strict=True) for cell in shown(*pair)),
        ]
        for position in found.worst
    ]
    return table(["worst: document", "position", "KL", "top-1 of A", "p", "top-1 of B", "p"], rows)


def _fidelity_lines(found: "Fidelity") -> list[str]:
    rows = [
        [source.name, f"{source.nats:.2e}" if source.nats is not None else "?", source.nature, source.how]
        for source in found.sources
    ]
    width = max(len(row[3]) for row in rows)
    cells = [[*row[:3], row[3].ljust(width)] for row in [*rows, ["sum", f"{found.total_nats:.2e}", "", "of what is known"]]]
    dominant = found.dominant
    lines = table(["source", "nats/token", "nature", "how it is known".ljust(width)], cells)
    verdict = f"{dominant.name} dominates" if dominant is not None else "nothing is lost"
    lines += ["", f"{verdict}; the teacher's entropy is {found.entropy_nats:.3f} nats/token over {found.positions:,} positions"]
    if found.gradient_noise is not None:
        lines.append(f"variance of the gradient with respect to the logits: {found.gradient_noise:.3g} per token")
    return lines


def _lines(facts: dict[str, object]) -> list[str]:
    return [f"{key}: {value}" for key, value in facts.items()]
