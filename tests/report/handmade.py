"""Handmade run folders, written and read through `limbeck.runs` as training would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.report.arms import Arm
from limbeck.runs import Costs, RunWriter, open_run
from limbeck.spec.load import load_recipe

DOCUMENTS = ((1000, 2000.0), (2000, 5000.0), (1500, 3000.0), (500, 1500.0), (3000, 6900.0), (1200, 3100.0))
"""(bytes, bits) of six documents: 9200 bytes, 21500 bits."""


def make_run(
    folder: Path,
    name: str,
    *,
    objective: str = "ce",
    documents: Sequence[tuple[int, float]] | None = DOCUMENTS,
    evals: Sequence[tuple[Costs, float]] = (),
    end: Costs | None = None,
    finished: bool = True,
    overrides: dict[str, Any] | None = None,
    **summary: Any,
) -> Arm:
    """An arm whose run folder holds these measurements; without `end`, ten steps of a hundred tokens and a second each."""
    recipe = load_recipe("quickstart", {"objective.kind": objective, "name": "arm", **(overrides or {})})
    writer = RunWriter(folder, recipe=recipe, device="cpu")
    end = end or Costs(step=10, tokens=1000, seconds=10.0, student_flops=1e12)
    for costs, bits in evals:
        writer.record("train", costs, loss_nats=bits + 1)
        writer.record("eval", costs, bits_per_byte=bits, kl_to_teacher_nats=bits / 2)
    if finished:
        given = documents or ()
        whole = sum(bits for _, bits in given) / sum(size for size, _ in given) if given else None
        values = {"bits_per_byte": whole, "heldout_bytes": sum(size for size, _ in given), "heldout_documents": len(given)}
        if documents is not None:
            values["bits_per_byte_by_document"] = [list(pair) for pair in documents]
        writer.finish(end, **{"arm": name, "kl_to_teacher_nats": None, **values, **summary})
    return Arm(name, open_run(folder))


def shifted(amount: float, *, wobble: float = 0.0) -> list[tuple[int, float]]:
    """The documents with every one `amount` bits per byte worse, and half of them `wobble` worse and half better."""
    return [(size, bits + size * (amount + (wobble if row % 2 else -wobble))) for row, (size, bits) in enumerate(DOCUMENTS)]
