"""A law's file: read as it was written, and a damaged one named key by key."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fit_points import chinchilla_points, distilled_points

from limbeck.errors import SpecError
from limbeck.plan.fit.custom import custom_form
from limbeck.plan.fit.fitting import fit_law
from limbeck.plan.fit.forms import CHINCHILLA, SUPERVISED, DistillationForm, Form
from limbeck.plan.fit.result import predicted
from limbeck.plan.law_files import law_values, read_laws, write_law
from limbeck.plan.laws import DISTILLATION, DistillationLaw
from limbeck.plan.laws import SUPERVISED as PUBLISHED

FORMULA = custom_form("E + A / N**alpha + B / D**beta - shift", {"shift": 0.0})


@pytest.mark.parametrize("form", [CHINCHILLA, SUPERVISED, FORMULA], ids=lambda form: form.name[:11])
def test_a_fitted_law_is_read_again(tmp_path: Path, form: Form) -> None:
    points = chinchilla_points()
    result = fit_law(form, points, resamples=20)
    write_law(tmp_path / "deep" / "law.json", result.as_json())
    laws = read_laws(tmp_path / "deep" / "law.json")
    assert law_values(laws.supervised) == law_values(result.law)  # parsed formulas are never the same object
    np.testing.assert_array_equal(predicted(laws.supervised, points), predicted(result.law, points))
    assert laws.distillation is None
    assert laws.fitted == points.fitted_range
    assert laws.fitted.params == (points.params.min(), points.params.max())
    assert laws.fitted.teacher_loss is None
    assert laws.name == str(tmp_path / "deep" / "law.json")


def test_a_distillation_law_holds_the_law_of_training_alone(tmp_path: Path) -> None:
    points, _ = distilled_points(60)
    result = fit_law(DistillationForm(PUBLISHED), points, resamples=0)
    values = result.as_json()
    assert values["law"] == "distillation"
    assert values["supervised"]["coefficients"]["A"] == 3355
    write_law(tmp_path / "law.json", values)
    laws = read_laws(tmp_path / "law.json")
    assert laws.distillation == result.law
    assert laws.supervised == PUBLISHED
    assert laws.fitted == points.fitted_range


def test_a_distillation_law_around_a_formula(tmp_path: Path) -> None:
    inner = FORMULA.law({"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "shift": 0.01})
    law = DistillationLaw(inner, A=2243, B=24181, alpha=0.3, beta=0.6, gamma=0.7, c0=2.5, c1=500, f1=0.09, d1=1.3)
    write_law(tmp_path / "law.json", law_values(law))
    read = read_laws(tmp_path / "law.json").distillation
    assert read is not None
    assert read.loss(1e9, 1e11, 2.2) == law.loss(1e9, 1e11, 2.2)


GOOD = {**law_values(DISTILLATION), "range": {"params": [1e8, 1e10], "tokens": [1e9, 1e12]}}


def changed(path: str, value: Any) -> dict[str, Any]:
    """`GOOD` with one key set, or removed where `value` is `...`."""
    values = copy.deepcopy(GOOD)
    inner: Any = values
    *parents, last = path.split("/")
    for parent in parents:
        inner = inner[parent]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("law", ..., "law is missing"),
        ("law", 3, "law is missing"),
        ("law", "chinchila", "law=chinchila is not a law; did you mean 'chinchilla'"),
        ("law", "A + (", "law: .*not a formula"),
        ("coefficients", ..., "coefficients is missing"),
        ("coefficients", [1], "coefficients is missing"),
        ("coefficients/A", ..., r"coefficients\.A is missing"),
        ("coefficients/E", 1.0, r"coefficients\.E is not one of the law's"),
        ("coefficients/A", -1, r"coefficients\.A=-1 must be a finite number above zero"),
        ("coefficients/f1", 0, r"coefficients\.f1=0 must be"),
        ("coefficients/c1", math.inf, r"coefficients\.c1=inf must be"),
        ("coefficients/c1", "522", r"coefficients\.c1='522' must be"),
        ("coefficients/c1", True, r"coefficients\.c1=True must be"),
        ("supervised", ..., "supervised is missing"),
        ("supervised/coefficients/E", math.nan, r"supervised\.coefficients\.E=nan must be"),
        ("supervised/law", "distillation", r"supervised\.coefficients\.E is not one|supervised\.law is distillation"),
        ("range", [1], "range must map"),
        ("range/param", [1, 2], r"range\.param is not a key; did you mean 'params'"),
        ("range/params", [2, 1], r"range\.params=\[2, 1\] must be two numbers"),
        ("range/params", [0, 1], r"range\.params"),
        ("range/params", [1], r"range\.params"),
    ],
)
def test_damage_is_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    file = tmp_path / "law.json"
    file.write_text(json.dumps(GOOD), encoding="utf-8")
    assert read_laws(file).distillation == DISTILLATION
    file.write_text(json.dumps(changed(path, value)), encoding="utf-8")
    with pytest.raises(SpecError, match=message) as caught:
        read_laws(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_what_is_no_law_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "law.json").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=r"law\.json"):
        read_laws(tmp_path / "law.json")
    with pytest.raises(SpecError, match="does not exist"):
        read_laws(tmp_path / "none.json")


def test_a_formula_may_have_negative_coefficients(tmp_path: Path) -> None:
    write_law(tmp_path / "law.json", {"law": "E + a * log(N)", "coefficients": {"E": 5.0, "a": -0.1}})
    law = read_laws(tmp_path / "law.json").supervised
    assert float(law.log_loss(np.log(1e9), np.log(1e10))) == pytest.approx(math.log(5 - 0.1 * math.log(1e9)))
