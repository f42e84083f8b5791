"""`limbeck eval RECIPE --eval latency [--layers N]…`: how fast a student would be, before it is trained.

With --layers also of a pretrained model: its architecture in other shapes, with random weights.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.cli.eval_target import is_run
from limbeck.cli.output import emit, human, table
from limbeck.errors import SpecError
from limbeck.spec.evals.latency import Latency
from limbeck.spec.load import load_evals, load_recipe, parse_overrides, shipped
from limbeck.spec.pretrained_student import HuggingFaceStudent

if TYPE_CHECKING:
    from limbeck.eval_results import Metric

FILE = "latency-by-shape"


def is_recipe(target: str) -> bool:
    """Whether it is a recipe's name or file, and no model: a folder of that name is one."""
    path = Path(target)
    return not path.is_dir() and (path.suffix in {".yaml", ".yml"} or target in shipped("recipes"))


def require_latency(target: str, kinds: Sequence[str] | None, *, layers: Sequence[int] | None) -> None:
    """`SpecError` where a recipe is asked for what training alone gives, or shapes for what is not their latency."""
    if is_recipe(target) and list(kinds or ()) != ["latency"]:
        raise SpecError(
            f"{target} is a recipe: `limbeck train {target}` and measure its run; of a student without training only "
            "--eval latency can be measured"
        )
    if layers and (is_run(target) or list(kinds or ()) != ["latency"]):
        raise SpecError(
            "--layers is for the latency of a recipe's student, or a model's, in other shapes: name one, and --eval latency"
        )


def latency_settings(overrides: list[str]) -> Latency:
    """What is asked of the clock."""
    spec = load_evals(["latency"], parse_overrides(overrides))["latency"]
    assert isinstance(spec, Latency)
    return spec


def show_shapes(target: str, layers: Sequence[int], *, overrides: list[str], output: Path, as_json: bool) -> None:
    """Time a recipe's student, or a model, in each of these depths, at equal parameters; write table and figure to `output`."""
    import json

    from limbeck.compute import pick_device
    from limbeck.drawing import write_figure
    from limbeck.evals.latency_figure import depths_figure
    from limbeck.evals.untrained import latency_by_model_shape, latency_by_shape
    from limbeck.paths import require_writable, write_atomically
    from limbeck.runs import environment

    recipe, spec = load_recipe(target) if is_recipe(target) else None, latency_settings(overrides)
    depths = sorted(set(layers))
    written = output / f"{FILE}.json"
    require_writable(written)
    if recipe is not None:
        found = latency_by_shape(recipe, spec, layers=depths, dtype=recipe.precision, device=recipe.device)
    else:
        found = latency_by_model_shape(target, HuggingFaceStudent(model=target), spec, layers=depths)
    shapes = {name: {"metrics": _plain(metrics), "details": details} for name, (metrics, details) in found.items()}
    values = {
        "recipe" if recipe is not None else "model": target,
        "spec": spec.model_dump(mode="json"),
        "shapes": shapes,
        "environment": environment(str(pick_device(recipe.device if recipe is not None else "auto"))),
    }
    output.mkdir(parents=True, exist_ok=True)
    by_depth = zip(depths, (details for _, details in found.values()), strict=True)
    draw, size = depths_figure(dict(by_depth))
    _, picture = write_figure(draw, output / FILE, size=size)
    write_atomically(written, json.dumps(values, indent=1, allow_nan=False))
    name = recipe.name if recipe is not None else target
    emit(values, as_json=as_json, lines=[*_lines(name, shapes), "", f"written: {written}, {picture}"])


def _plain(metrics: "dict[str, Metric]") -> dict[str, Any]:
    return {name: asdict(metric) for name, metric in metrics.items()}


def _lines(name: str, shapes: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each shape: median (90th percentile) in milliseconds."""
    details = {shape: found["details"] for shape, found in shapes.items()}
    first = next(iter(details.values()))
    headers = ["layers x width", "parameters"]
    headers += [f"prefill {each['tokens']}" for each in first["prefill"]]
    headers += [f"decode x{each['batch_size']}" for each in first["decode"]]
    headers.append("KV bytes/token")
    rows = []
    for shape, found in details.items():
        timings = [f"{each['median_ms']:.4g} ({each['p90_ms']:.4g})" for each in [*found["prefill"], *found["decode"]]]
        kv_bytes = f"{shapes[shape]['metrics']['kv_bytes_per_token']['value']:,.0f}"
        rows.append([shape, human(found["parameters"]), *timings, kv_bytes])
    asked = f"{first['dtype']}, {first['threads']} threads, random weights"
    return [f"{name} in shapes of equal size: ms, median (90th percentile); {asked}", "", *table(headers, rows)]
