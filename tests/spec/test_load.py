"""Recipes from YAML and overrides: what is accepted, and the one line that says what is not."""

from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import SpecError
from limbeck.spec.load import load_recipe, load_study, parse_overrides, shipped
from limbeck.spec.objective import ForwardKL, Mixture, ReverseKL
from limbeck.spec.overrides import apply_overrides
from limbeck.spec.weight import Constant


def message(*overrides: str, recipe: str = "quickstart") -> str:
    with pytest.raises(SpecError) as caught:
        load_recipe(recipe, parse_overrides(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", shipped("recipes"))
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert load_recipe(name).name == name


def test_every_shipped_study_asks_something_of_a_shipped_recipe() -> None:
    for name in shipped("studies"):
        study = load_study(name)
        assert study.name == name
        assert study.recipe in shipped("recipes")
        assert study.question is not None


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


MIXED = ("objective.kind=mixture", "objective.terms=[{weight: 0.5, term: {kind: forward_kl}}, {weight: 0.5, term: {kind: ce}}]")


def test_the_terms_of_a_mixture_are_set_by_their_place() -> None:
    changes = ("objective.terms.0.weight=0.3", "objective.terms.1.term.kind=reverse_kl", "objective.terms.0.term.tail=text")
    recipe = load_recipe("quickstart", parse_overrides([*changes, "signal.kind=topk", "signal.k=8", *MIXED]))
    assert isinstance(recipe.objective, Mixture)
    assert [weighted.weight for weighted in recipe.objective.terms] == [Constant(value=0.3), Constant(value=0.5)]
    assert [weighted.term for weighted in recipe.objective.terms] == [ForwardKL(tail="text"), ReverseKL()]


def test_a_place_of_a_list_can_be_set_whole_and_nothing_given_is_changed() -> None:
    values: dict[str, Any] = {"a": {"b": [1, {"c": 2}]}}
    assert apply_overrides(values, {"a.b.0": {"d": 3}, "a.b.1.c": 4}) == {"a": {"b": [{"d": 3}, {"c": 4}]}}
    assert values == {"a": {"b": [1, {"c": 2}]}}
    overrides: dict[str, Any] = {"a.b": [{"c": 5}], "a.b.0.c": 6}
    assert apply_overrides(values, overrides) == {"a": {"b": [{"c": 6}]}}
    assert overrides == {"a.b": [{"c": 5}], "a.b.0.c": 6}
    assert apply_overrides({"a": ({"b": 1},)}, {"a.0.b": 2}) == {"a": [{"b": 2}]}


def test_a_kind_below_what_is_set_whole_is_set_after_it() -> None:
    whole = {"signal": {"kind": "topk", "k": 3}, "signal.kind": "sampled", "signal.draws": 5}
    assert apply_overrides({}, whole) == {"signal": {"kind": "sampled", "draws": 5}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("objective.terms.2.weight=0.3", "objective.terms.2: objective.terms is a list without a place 2 (it has 0 to 1)"),
        ("objective.terms.-1.weight=0.3", "a list without a place -1 (it has 0 to 1)"),
        ("objective.terms.first.weight=0.3", "a list without a place first (it has 0 to 1)"),
        ("objective.terms.2={weight: 1, term: {kind: ce}}", "objective.terms.2: objective.terms is a list without a place 2"),
        ("objective.terms.kind=ce", "objective.terms.kind: objective.terms is a list without a place kind"),
        ("objective.terms.0.weight.share=1", "objective.terms.0.weight holds a value, not keys"),
        ("objective.terms.1.wieght=1", "objective.terms.1.wieght is not a key; did you mean 'weight'?"),
    ],
)
def test_a_place_that_a_list_does_not_have_is_named(override: str, expected: str) -> None:
    assert expected in message(*MIXED, override)


def test_an_empty_list_has_no_places() -> None:
    with pytest.raises(SpecError, match=r"a list without a place 0 \(it has none yet\); set a to change it whole"):
        apply_overrides({"a": []}, {"a.0": 1})


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
