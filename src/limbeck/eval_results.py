"""What an evaluation leaves behind: `evals/<name>.json` in a run's folder, or beside any model. Torch-free.

Metrics are flat, so that a report can put any of them into a table, average it over seeds and take differences; `details` hold
what only the reports of that kind know how to show (bins, samples, tables by length).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import LimbeckError
from limbeck.paths import write_atomically

FOLDER = "evals"


@dataclass(frozen=True)
class Metric:
    """One number of a model. Its unit is in its name: `bits_per_byte`, `kl_nats`, `seconds_per_problem`."""

    value: float
    low: float | None = None
    """The ends of a 95 % interval over `n` units; None where there is none."""
    high: float | None = None
    n: int | None = None
    """Over how many documents, problems, samples or repeats."""
    better: Literal["lower", "higher"] | None = None


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation found of one model."""

    kind: str
    name: str
    """The kind's, unless a study asks for two of a kind."""
    model: str
    spec: dict[str, Any]
    """What was asked for."""
    metrics: dict[str, Metric]
    details: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    subject: dict[str, Any] = field(default_factory=dict)
    """Of what it was asked: the model's weights, its texts, its teacher."""


def write_result(folder: Path, result: EvalResult) -> Path:
    """Write `folder/evals/<name>.json`, whole or not at all; `LimbeckError` names a number that is none."""
    values = asdict(result)
    for place, number in _not_finite({"metrics": values["metrics"], "details": values["details"]}, ""):
        raise LimbeckError(
            f"{result.name} of {result.model}: {place} is {number}: the model's logits are not finite, or there was nothing to "
            "measure; leave this evaluation out"
        )
    path = folder / FOLDER / f"{result.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False))
    return path


def _not_finite(values: Any, place: str) -> Iterator[tuple[str, float]]:
    """The places (`metrics.nats.value`) of what JSON cannot hold."""
    if isinstance(values, float) and not math.isfinite(values):
        yield place.removeprefix("."), values
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list | tuple) else ()
    for key, value in pairs:
        yield from _not_finite(value, f"{place}.{key}")


def read_results(folder: Path) -> dict[str, EvalResult]:
    """The results in `folder/evals` by name; empty where there are none. `LimbeckError` names a damaged file."""
    found = {}
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            metrics = {name: Metric(**metric) for name, metric in values["metrics"].items()}
            found[path.stem] = EvalResult(**{**values, "metrics": metrics})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LimbeckError(f"{path} is damaged ({error}): remove it and evaluate again") from error
    return found
