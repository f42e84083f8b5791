"""A law as a small JSON file: what `limbeck fit` writes and `limbeck plan --law` reads.

    {"law": "chinchilla", "coefficients": {"A": …, "B": …, "E": …, "alpha": …, "beta": …}, "range": {"params": [low, high], …}}

`law` is chinchilla, supervised, distillation, or a formula of N and D. A distillation law holds, under `supervised`, the law
that is frozen inside it. Other keys say how the fit went and are not read.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import SpecError
from limbeck.paths import write_atomically
from limbeck.plan.formula import parse_formula
from limbeck.plan.laws import DistillationLaw, FittedRange, FormulaLaw, Laws, Supervised, SupervisedLaw
from limbeck.spec.base import nearest

CHINCHILLA_COEFFICIENTS = ("A", "B", "E", "alpha", "beta")
COEFFICIENTS = {
    "chinchilla": CHINCHILLA_COEFFICIENTS,
    "supervised": (*CHINCHILLA_COEFFICIENTS, "gamma"),
    "distillation": ("A", "B", "alpha", "beta", "gamma", "c0", "c1", "f1", "d1"),
}
"""Of the laws with names, in the order in which they are shown."""
_RANGES = ("params", "tokens", "teacher_loss")


def law_values(law: Supervised | DistillationLaw) -> dict[str, Any]:
    """The keys of a law's file that say which law it is."""
    match law:
        case FormulaLaw(formula=formula, coefficients=coefficients):
            return {"law": formula.text, "coefficients": dict(coefficients)}
        case DistillationLaw(supervised=supervised):
            return {**_named("distillation", law), "supervised": law_values(supervised)}
        case SupervisedLaw(gamma=gamma):
            return _named("chinchilla" if gamma == 1 else "supervised", law)
    raise AssertionError(f"{law} is no law that has a file")


def range_values(fitted: FittedRange) -> dict[str, list[float]]:
    """The key `range` of a law's file: what isn't known is left out."""
    pairs = {name: getattr(fitted, name) for name in _RANGES}
    return {name: list(pair) for name, pair in pairs.items() if pair is not None}


def write_law(path: Path, values: Mapping[str, Any]) -> None:
    """Write a law's file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_laws(path: str | Path) -> Laws:
    """The laws in a file; `SpecError` naming the key where something is missing or can't be."""
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist: `limbeck fit … -o {path}` writes a law") from None
    except ValueError as error:
        raise SpecError(f"{path} is no law: it is not JSON ({error}); `limbeck fit … -o {path}` writes one") from None
    law = _law(values, source=str(path), key="")
    fitted = _range(values.get("range", {}), source=str(path))
    if isinstance(law, DistillationLaw):
        return Laws(str(path), law.supervised, law, fitted)
    return Laws(str(path), law, None, fitted)


def _named(name: str, law: object) -> dict[str, Any]:
    return {"law": name, "coefficients": {each: float(getattr(law, each)) for each in COEFFICIENTS[name]}}


def _law(values: Any, *, source: str, key: str) -> Supervised | DistillationLaw:
    if not isinstance(values, dict) or not isinstance(values.get("law"), str):
        raise SpecError(f"{source}: {key}law is missing: it names chinchilla, supervised, distillation or a formula")
    name = values["law"]
    given = values.get("coefficients")
    if not isinstance(given, dict):
        raise SpecError(f"{source}: {key}coefficients is missing: it maps the law's coefficients to numbers")
    if name not in COEFFICIENTS:
        return _formula_law(name, given, source=source, key=key)
    numbers = _coefficients(given, COEFFICIENTS[name], positive=True, source=source, key=key)
    if name != "distillation":
        return SupervisedLaw(**numbers)
    if "supervised" not in values:
        raise SpecError(f"{source}: supervised is missing: a distillation law holds the law of training alone")
    inner = _law(values["supervised"], source=source, key="supervised.")
    if isinstance(inner, DistillationLaw):
        raise SpecError(f"{source}: supervised.law is distillation, but must be a law of training without a teacher")
    return DistillationLaw(inner, **numbers)


def _formula_law(text: str, given: dict[str, Any], *, source: str, key: str) -> FormulaLaw:
    if text.isidentifier():
        raise SpecError(f"{source}: {key}law={text} is not a law{nearest(text, list(COEFFICIENTS))}, nor a formula of N and D")
    try:
        formula = parse_formula(text)
    except SpecError as error:
        raise SpecError(f"{source}: {key}law: {error}") from None
    names = tuple(sorted(formula.names - {"N", "D"}))
    return FormulaLaw(formula, _coefficients(given, names, positive=False, source=source, key=key))


def _coefficients(given: dict[str, Any], names: tuple[str, ...], *, positive: bool, source: str, key: str) -> dict[str, float]:
    for name in (*given, *names):
        place = f"{source}: {key}coefficients.{name}"
        if name not in names:
            raise SpecError(f"{place} is not one of the law's{nearest(name, list(names))}")
        if name not in given:
            raise SpecError(f"{place} is missing: fit the law again or add it")
        if not _is_number(given[name]) or (positive and given[name] <= 0):
            wanted = "a finite number above zero" if positive else "a finite number"
            raise SpecError(f"{place}={given[name]!r} must be {wanted}")
    return {name: float(given[name]) for name in names}


def _range(values: Any, *, source: str) -> FittedRange:
    if not isinstance(values, dict):
        raise SpecError(f"{source}: range must map params, tokens and teacher_loss to [least, greatest]")
    for name, pair in values.items():
        if name not in _RANGES:
            raise SpecError(f"{source}: range.{name} is not a key{nearest(name, list(_RANGES))}")
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)) or not 0 < pair[0] <= pair[1]:
            raise SpecError(f"{source}: range.{name}={pair!r} must be two numbers above zero, the least and the greatest")
    return FittedRange.of(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
