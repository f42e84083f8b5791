"""Recipes from YAML and overrides: what is accepted, and the one line that says what is not."""

from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import SpecError
from limbeck.spec.load import apply_overrides, load_recipe, load_study, parse_overrides, shipped


def message(*overrides: str, recipe: str = "quickstart") -> str:
    with pytest.raises(SpecError) as caught:
        load_recipe(recipe, parse_overrides(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", shipped("recipes"))
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert load_recipe(name).name == name


def test_every_shipped_study_names_a_shipped_recipe_and_valid_arms() -> None:
    for name in shipped("studies"):
        study = load_study(name)
        for changes in study.arms.values():
            load_recipe(study.recipe, changes)


def test_a_misspelt_key_is_named_with_its_path_and_the_nearest_valid_one() -> None:
    assert "student.hiden_size is not a key; did you mean 'hidden_size'?" in message("student.hiden_size=3")
    assert "teacher.context.windw is not a key; did you mean 'window'?" in message("teacher.context.windw=3")


def test_a_misspelt_key_inside_a_tagged_union_is_named_without_the_tag() -> None:
    text = message("objective.kind=mixture", "objective.terms=[{weight: 1, term: {kind: forward_kl, tial: bucket}}]")
    assert "objective.terms.0.term.tial is not a key; did you mean 'tail'?" in text


def test_an_unknown_kind_is_named_with_the_valid_ones() -> None:
    assert "objective.kind=forwardkl is not a kind; did you mean 'forward_kl'?" in message("objective.kind=forwardkl")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budget.amount=-5", "budget.amount=-5"),
        ("student.head_dim=7", "head_dim=7 must be even"),
        ("student.num_kv_heads=3", "num_heads=4 is not a multiple of num_kv_heads=3"),
        ("teacher.context.overlap=4096", "overlap=4096 must be smaller than window"),
        ("signal.kind=hard", "signal.kind=hard is no distribution"),
        ("name=a/b", "name='a/b'"),
    ],
)
def test_nonsense_is_refused_with_its_value(override: str, expected: str) -> None:
    assert expected in message(override)


def test_an_objective_without_its_signal_is_refused() -> None:
    assert "set signal.kind" in message("signal=null")
    assert "set teacher.kind" in message("teacher=null", "data.tokenizer=x")


def test_setting_another_kind_starts_afresh_and_the_same_kind_does_not() -> None:
    values: dict[str, Any] = {"signal": {"kind": "sampled", "draws": 7}}
    assert apply_overrides(values, {"signal.kind": "topk"}) == {"signal": {"kind": "topk"}}
    assert apply_overrides(values, {"signal.kind": "sampled"}) == values
    assert apply_overrides(values, {"signal.k": 3, "signal.kind": "topk"}) == {"signal": {"k": 3, "kind": "topk"}}
    assert values == {"signal": {"kind": "sampled", "draws": 7}}


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert load_recipe("quickstart", parse_overrides(["budget.amount=2e6"])).budget.amount == 2_000_000.0


def test_an_argument_that_is_no_override_is_refused() -> None:
    with pytest.raises(SpecError, match=r"not of the form key\.path=value"):
        parse_overrides(["budget.amount"])


def test_a_missing_file_and_a_misspelt_recipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent\.yaml does not exist"):
        load_recipe(str(tmp_path / "absent.yaml"))
    with pytest.raises(SpecError, match="did you mean 'nano'"):
        load_recipe("nan0")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: x\nstudent: {kind: olmo3\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"broken\.yaml, line 3"):
        load_recipe(str(path))
