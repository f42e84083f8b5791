"""How a study was set up, as tables: texts, student and budget, what arms change, signal stores, versions and machines."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import formats
from limbeck.report.arms import Arm, Arms, Member, finite, reads
from limbeck.report.blocks import Scalar, Table
from limbeck.report.comparisons import nearest_pairs


def reference_of(arm: Arm, arms: Arms) -> Member:
    """What an arm's recipe is told by: its control, or what it is compared with, or the study's first run."""
    pairs = nearest_pairs(arm, arms)
    if pairs and pairs[0][1].run is not None:
        return pairs[0][1]
    return next((other.first for other in arms if other.first.run is not None), arm.first)


def main_arm(arms: Arms) -> Arm:
    """The arm whose setup stands for the study's: the first control with a run, or the first arm with one."""
    begun = [arm for arm in arms if arm.first.run is not None]
    return next((arm for arm in begun if arms.is_control(arm)), begun[0] if begun else arms.all[0])


def setup_table(member: Member) -> Table:
    """The student, the texts and the budget, as a run's recipe and summary have them."""
    assert member.run is not None, "what was never started has no setup to show"
    recipe = member.run.recipe
    facts = [
        ("student", formats.pairs(recipe.student.model_dump())),
        ("parameters", parameters_text(member)),
        ("training texts", formats.pairs(recipe.data.train.model_dump())),
        ("held-out texts", formats.pairs(recipe.data.heldout.model_dump())),
        ("sequence", f"{recipe.data.sequence_length} tokens, packing={recipe.data.packing}"),
        ("batch", formats.pairs(recipe.batch.model_dump())),
        ("budget", formats.pairs(recipe.budget.model_dump())),
        ("optimizer", formats.pairs(recipe.optimizer.model_dump())),
        ("schedule", formats.pairs(recipe.schedule.model_dump())),
        ("precision", str(member.summary.get("precision", recipe.precision))),
        ("student FLOPs per token", formats.power(finite(member.summary.get("student_flops_per_token")))),
    ]
    return _facts(("setup", f"of “{member.name}”"), facts, name="setup")


def parameters_text(member: Member) -> str:
    """`11,200,000: 4,100,000 outside the embedding, 7,100,000 in it`."""
    parameters = member.summary.get("parameters")
    if not parameters:
        return formats.UNKNOWN
    outside, inside = formats.count(parameters["non_embedding"]), formats.count(parameters["embedding"])
    return f"{formats.count(parameters['total'])}: {outside} outside the embedding, {inside} in it"


_MOST_NAMED = 8


def environment_table(arms: Arms) -> Table:
    """Versions, commit and hardware; one value where all runs agree, otherwise each with the runs that have it."""
    runs = [(member.name, member.run.environment) for member in arms.members if member.run is not None]
    keys = list(dict.fromkeys(key for _, environment in runs for key in environment))
    rows: list[tuple[str, str]] = []
    for key in keys:
        holders: dict[str, list[str]] = {}
        for name, environment in runs:
            holders.setdefault(str(environment.get(key, formats.UNKNOWN)), []).append(name)
        own = "; ".join(f"{_some(names)}: {value}" for value, names in holders.items())
        rows.append((key, next(iter(holders)) if len(holders) == 1 else own))
    return _facts(("environment", ""), rows, name="environment")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MOST_NAMED])} and {more} more"


INCIDENTAL = ("name", "output", "store", "checkpoint")
"""What a recipe says of names and places, which makes no arm."""


def recipe_differences(member: Member, other: Member) -> dict[str, Any]:
    """What a run's recipe says otherwise than another's, as dotted paths; names, places and paired seeds aside."""
    if member.run is None or other.run is None:
        return {}
    mine, theirs = (dict(formats.flatten(each.run.recipe.model_dump(mode="json"))) for each in (member, other) if each.run)
    changed = (path for path in dict.fromkeys([*mine, *theirs]) if mine.get(path) != theirs.get(path))
    return {path: mine.get(path) for path in changed if path.split(".")[0] not in INCIDENTAL}


def arm_differences(arm: Arm, arms: Arms) -> dict[str, Any]:
    """What an arm's recipe says otherwise than what it is told by, of the same seed where there is one."""
    pairs = [pair for pair in nearest_pairs(arm, arms) if pair[0].run is not None and pair[1].run is not None]
    if pairs:
        return recipe_differences(*pairs[0])
    differences = recipe_differences(arm.first, reference_of(arm, arms))
    return {path: value for path, value in differences.items() if path != "seed"}


def difference_table(arms: Arms) -> Table:
    """Where each arm's recipe departs from what it is told by."""
    rows = tuple(
        (arm.name, reference_of(arm, arms).cell.arm, _changes(arm, arms))
        for arm in arms
        if arm.first.run is not None and reference_of(arm, arms) not in arm.members
    )
    return Table(
        ("arm", "differs from", "by"), rows, frozenset({0, 1, 2}), name="recipes", title="What arms change", style="facts"
    )


def _changes(arm: Arm, arms: Arms) -> str:
    return ", ".join(f"{path}={value}" for path, value in arm_differences(arm, arms).items()) or "nothing"


def store_table(stores: Sequence[Mapping[str, Any]], arms: Arms) -> Table:
    """What each signal store is, what it weighs and how fast it was written; one store a column."""
    facts = [_store_facts(store, arms) for store in stores]
    labels = list(dict.fromkeys(label for each in facts for label in each))
    rows = tuple((label, *(each.get(label, formats.UNKNOWN) for each in facts)) for label in labels)
    headers = ("store", *(str(store.get("kind")) for store in stores))
    return Table(headers, rows, frozenset(range(len(stores) + 1)), name="stores", style="facts")


def _store_facts(store: Mapping[str, Any], arms: Arms) -> dict[str, str]:
    readers = dict.fromkeys(member.cell.arm for member in arms.members if reads(member, store))
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


def fidelity_table(fidelity: Mapping[str, Mapping[str, Any]]) -> Table:
    """What stands between the teacher and each store, in nats per token (`limbeck cache fidelity`)."""
    rows: list[tuple[str, ...]] = []
    records: list[Mapping[str, Scalar]] = []
    for store, found in fidelity.items():
        total = {"name": "sum", "nats": found.get("total_nats"), "nature": "", "how": "of what is known"}
        for source in [*found.get("sources", ()), total]:
            nats = finite(source.get("nats"))
            name, nature, how = (str(source.get(key, "")) for key in ("name", "nature", "how"))
            rows.append((store, name, formats.significant(nats, 3), nature, how))
            records.append({"store": store, "source": name, "nats_per_token": nats, "nature": nature, "how": how})
    headers = ("store", "source", "nats/token", "nature", "how it is known")
    return Table(
        headers,
        tuple(rows),
        frozenset({0, 1, 3, 4}),
        name="fidelity",
        title="How faithful the stores are",
        records=tuple(records),
    )


def _facts(headers: tuple[str, str], rows: Sequence[tuple[str, str]], *, name: str) -> Table:
    return Table(headers, tuple(rows), frozenset({0, 1}), name=name, style="facts")
