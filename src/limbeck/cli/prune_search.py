"""The table of a search over shapes, for people and for machines, and the file that it is kept in."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.cli.output import human, table
from limbeck.errors import SpecError
from limbeck.paths import write_atomically
from limbeck.plan.prune_shapes import Caps
from limbeck.plan.prune_target import UNITS
from limbeck.report.pruning import PRUNING, read_pruning

if TYPE_CHECKING:  # torch is imported when something is pruned, not when the command line starts
    from limbeck.surgery.search import Asked, Measured, Searched

SEARCH = "search.json"


def found_lines(searched: "Searched", asked: "Asked") -> list[str]:
    """A row for the model before, then one for each shape that was measured, the best first."""
    healed, latency = asked.heal_steps > 0, asked.target.quantity == "latency"
    headers = ["shape", "kind", "parameters", "active", "FLOPs/token", "memory", "off target", "loss pruned"]
    headers += [f"healed ({asked.heal_steps} steps)"] if healed else []
    headers += ["decode ms"] if latency else []
    whole = searched.whole
    costs = [human(whole.parameters), human(whole.active_parameters), human(whole.flops), human(whole.memory, "B")]
    before = ["before", "", *costs, "", f"{searched.whole_loss:.4f}", *[""] * healed]
    rows = [before + ([f"{searched.whole_amount:.4g}"] if latency else [])]
    rows += [_row(each, searched, healed=healed, latency=latency) for each in searched.ranked]
    wanted = human(searched.wanted, UNITS[asked.target.quantity])
    lines = [
        f"{asked.target.quantity} of {wanted} within {asked.tolerance:.0%}: {searched.found.counted:,} shapes counted, "
        f"{searched.found.near:,} near, {len(searched.ranked)} measured; the best first",
        "",
        *table(headers, rows),
        f"loss: nats per token of {searched.tokens:,} tokens that healing does not read; memory: weights in bfloat16, keys and "
        f"values of {asked.workload.context:,} tokens, {asked.workload.batch_size} at once",
    ]
    if any(each.shape.beyond_caps for each in searched.ranked):
        caps = asked.caps.over(Caps())
        lines.append(
            f"*: loses more than {caps.width:.0%} of a width or {caps.depth:.0%} of the layers: no shape of that "
            "kind meets the target otherwise"
        )
    nearest = searched.ranked[0]
    if abs(nearest.departure(searched.wanted)) > asked.tolerance:
        lines.append(
            f"no measured shape is within {asked.tolerance:.0%}; the nearest is {_shape(nearest)} "
            f"({nearest.departure(searched.wanted):+.1%}): raise --top or --tolerance"
        )
    return lines


def _shape(each: "Measured") -> str:
    return " ".join(f"{name}={size}" for name, size in each.shape.sizes.items())


def _row(each: "Measured", searched: "Searched", *, healed: bool, latency: bool) -> list[str]:
    shape, costs = each.shape, each.shape.costs
    row = [
        _shape(each) + ("*" if shape.beyond_caps else ""),
        shape.kind,
        human(each.parameters),
        human(costs.active_parameters),
        human(costs.flops),
        human(costs.memory, "B"),
        f"{each.departure(searched.wanted):+.1%}",
        f"{each.loss_pruned:.4f}",
    ]
    row += [f"{each.loss_healed:.4f}" if each.loss_healed is not None else "-"] if healed else []
    return row + ([f"{each.decode_ms:.4g}"] if latency and each.decode_ms is not None else [])


def found_values(searched: "Searched", *, model: str, values: dict[str, Any], asked: "Asked") -> dict[str, Any]:
    """All of it."""
    shapes = [
        {
            "sizes": each.shape.sizes,
            "kind": each.shape.kind,
            "beyond_caps": each.shape.beyond_caps,
            "parameters": each.parameters,
            "costs": asdict(each.shape.costs),
            "amount": each.shape.amount,
            "loss_pruned_nats": each.loss_pruned,
            "loss_healed_nats": each.loss_healed,
            "decode_ms": each.decode_ms,
            "departure": each.departure(searched.wanted),
        }
        for each in searched.ranked
    ]
    return {
        "asked": _asked(model, values, asked),
        "before": {"costs": asdict(searched.whole), "amount": searched.whole_amount, "loss_nats": searched.whole_loss},
        "wanted": searched.wanted,
        "counted": searched.found.counted,
        "near": searched.found.near,
        "rows": searched.rows,
        "tokens": searched.tokens,
        "shapes": shapes,
    }


def write_search(values: dict[str, Any], folder: Path) -> None:
    """Beside the model that it chose."""
    write_atomically(folder / SEARCH, json.dumps(values, indent=1, allow_nan=False))


def require_same_search(folder: Path, *, model: str, parent: str, values: dict[str, Any], asked: "Asked") -> None:
    """`SpecError` where a folder is there already that something else was written to. `parent` is what `model` stands for."""
    if not folder.exists():
        return
    path, pruned = folder / SEARCH, folder / PRUNING
    if path.is_file():
        same = json.loads(path.read_text(encoding="utf-8")).get("asked") == json.loads(json.dumps(_asked(model, values, asked)))
    else:  # killed between the two files, or not of a search: whether it is the best shape's is known after it
        same = pruned.is_file() and read_pruning(pruned).parent == parent
    if not same:
        raise SpecError(f"{folder} exists and holds something else: name another folder")


def _asked(model: str, values: dict[str, Any], asked: "Asked") -> dict[str, Any]:
    return {"model": model, "pruning": values, **asdict(asked)}
