"""Designs for scaling laws: what is in them, what they cost by formulas written out here, and that they can be run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import SpecError
from limbeck.plan.design import Design, Grid, design, member_of
from limbeck.plan.design_file import write_design
from limbeck.plan.family import Member
from limbeck.spec.load import load_recipe, load_study
from limbeck.study.expand import expand, recipes_of, teacher_cells, waves

CONTEXT, VOCABULARY = 4096, 32_768
LAYERS = {"143m": 9, "198m": 10, "546m": 14, "1.82b": 21}
MLP = {9: 3072, 10: 3456, 14: 4864, 21: 7168}
"""8/3 d up to a multiple of 128, as Table 13 prints it."""


def params(layers: int) -> int:
    """Outside the embeddings: norms of d before both branches, of d / 16 on queries and keys of a head, and a last one."""
    d = 128 * layers
    return layers * (4 * d * d + 3 * d * MLP[layers] + 2 * d + 2 * d // 16) + d


def forward_flops(layers: int) -> float:
    d = 128 * layers
    return 2 * params(layers) + 2 * CONTEXT * layers * d + 2 * VOCABULARY * d


def members(*names: str) -> tuple[Member, ...]:
    return tuple(member_of(name, source="--students") for name in names)


def made(grid: Grid, **keywords: Any) -> Design:
    return design(grid, flops_per_second=4e14, **keywords)


@pytest.fixture
def whole() -> Design:
    """Every protocol at once, at the paper's scale."""
    return made(
        Grid(
            students=members("143M", "198M", "546M"),
            teachers=members("198M", "546M", "1.82B"),
            student_flops=(1e20, 3e20),
            teacher_flops=(1e21,),
            student_tokens_per_parameter=(20, 80),
        )
    )


def test_fixed_ratio_teachers_cost_three_forward_passes_a_token() -> None:
    found = made(Grid(teachers=members("198M", "1.82B"), teacher_tokens_per_parameter=(20, 80)))
    expected = {"teacher-198m-3.97b": (10, 20), "teacher-198m-15.9b": (10, 80)}
    expected |= {"teacher-1.82b-36.4b": (21, 20), "teacher-1.82b-146b": (21, 80)}
    arms = {arm.arm: arm for arm in found.arms}
    assert set(arms) == set(expected)
    for name, (layers, ratio) in expected.items():
        assert arms[name].params == params(layers)
        assert arms[name].total_params == params(layers) + VOCABULARY * 128 * layers
        assert arms[name].tokens == ratio * params(layers)
        assert arms[name].student_flops == pytest.approx(3 * forward_flops(layers) * ratio * params(layers), rel=1e-12)
        assert (arms[name].teacher, arms[name].teacher_flops) == (None, 0)
    hand = sum(3 * forward_flops(layers) * ratio * params(layers) for layers, ratio in expected.values())
    assert found.total_flops == pytest.approx(hand, rel=1e-12)
    assert found.price.hours == pytest.approx(hand / 4e14 / 3600, rel=1e-12)
    assert found.price.stores == ()


def test_sizes_are_those_of_the_papers_table(whole: Design) -> None:
    printed = {"143m": 143e6, "198m": 198e6, "546m": 546e6, "1.82b": 1.82e9}
    for arm in whole.arms:
        size = arm.arm.split("-")[1 if arm.teacher is None else 0]
        assert arm.params == pytest.approx(printed[size], rel=0.003)
        assert arm.params == params(LAYERS[size])


def test_isoflop_students_spend_their_budget() -> None:
    grid = Grid(students=members("143M", "546M"), teachers=members("198M"), student_flops=(1e20, 3e20))
    found = made(grid, unique_tokens=1e12)
    alone = made(replace(grid, protocols=("isoflop-students",)))
    students = [arm for arm in alone.arms if arm.teacher is not None]
    assert len(students) == 4
    # without knowing how many there are, a store is priced at the tokens of its longest reader
    assert [store.tokens for store in alone.price.stores] == [round(3e20 / 3 / forward_flops(9))]
    for arm in students:
        layers = LAYERS[arm.arm.partition("-")[0]]
        flops = 1e20 if arm.tokens == pytest.approx(1e20 / 3 / forward_flops(layers), abs=0.5) else 3e20
        assert arm.student_flops == pytest.approx(flops, rel=1e-9)
        assert arm.tokens == pytest.approx(flops / (3 * forward_flops(layers)), abs=0.5)
        assert arm.teacher_flops == pytest.approx(forward_flops(10) * arm.tokens, rel=1e-12)
    (store,) = found.price.stores  # one teacher: one store, however many students read it
    assert (store.teacher, store.tokens) == ("teacher-198m-3.97b", 1e12)
    assert found.price.scoring_flops == pytest.approx(forward_flops(10) * 1e12, rel=1e-12)
    # Measured of 50 draws: 24.5 bytes a token with SmolLM2-135M, whose vocabulary is one half larger.
    assert store.bytes == pytest.approx(24 * 1e12, rel=0.08)


def test_isoflop_teachers_spend_theirs_and_teach_students_of_fixed_tokens() -> None:
    grid = Grid(students=members("143M"), teachers=members("198M", "1.82B"), teacher_flops=(1e20, 1e21))
    found = made(replace(grid, protocols=("isoflop-teachers",)))
    teachers = {arm.arm: arm for arm in found.arms if arm.arm.startswith("teacher-")}
    assert [arm.student_flops for arm in teachers.values()] == pytest.approx([1e20, 1e20, 1e21, 1e21], rel=1e-9)
    students = [arm for arm in found.arms if arm.teacher is not None]
    assert [arm.teacher for arm in students] == list(teachers)
    assert {arm.tokens for arm in students} == {20 * params(9)}
    assert len(found.arms) == 4 + 1 + 4
    hand = sum(forward_flops(LAYERS[name.split("-")[1]]) for name in teachers) * 20 * params(9)
    assert found.price.scoring_flops == pytest.approx(hand, rel=1e-12)


def test_every_distilled_arm_has_the_same_student_on_the_same_tokens_as_its_control(whole: Design) -> None:
    assert whole.protocols == ("teachers", "isoflop-students", "isoflop-teachers", "fixed")
    study = whole.study
    distilled = [arm for arm in whole.arms if arm.teacher is not None]
    # students (3 sizes) x (2 budgets x 3 teachers + 2 ratios x 3 isoflop teachers + 2 ratios x 3 teachers)
    assert len(distilled) == 3 * (2 * 3 + 2 * 3 + 2 * 3)
    # teachers: 3 + 3; controls: 3 sizes x (2 budgets + 2 ratios), of which two are fixed-ratio teachers
    assert len(whole.arms) - len(distilled) == 6 + 3 * 4 - 2
    prices = {arm.arm: arm for arm in whole.arms}
    same = ("params", "tokens", "student_flops")
    for arm in distilled:
        control = prices[study["controls"][arm.arm]]
        assert control.teacher is None
        assert [getattr(arm, name) for name in same] == [getattr(control, name) for name in same]
    twin = study["controls"]["198m-3.97b-from-1.82b-36.4b"]
    assert twin == "teacher-198m-3.97b"  # a teacher of the same size and tokens is the control


def test_no_two_arms_are_equal(whole: Design) -> None:
    contents = [yaml.safe_dump(changes) for changes in whole.study["arms"].values()]
    assert len(set(contents)) == len(contents)
    twice = made(Grid(students=members("198M", "ladder-198m", "layers=10"), teachers=members("546M", "546M")))
    assert [arm.arm for arm in twice.arms] == ["teacher-546m-10.9b", "control-198m-3.97b", "198m-3.97b-from-546m-10.9b"]


def test_tokens_that_three_digits_do_not_tell_apart_are_written_out() -> None:
    found = made(Grid(teachers=members("198M"), teacher_tokens_per_parameter=(20, 20.001, 40)))
    tokens = [round(ratio * params(10)) for ratio in (20, 20.001, 40)]
    assert [arm.arm for arm in found.arms] == [f"teacher-198m-{tokens[0]}", f"teacher-198m-{tokens[1]}", "teacher-198m-7.93b"]


def test_the_file_is_a_study_whose_recipes_are_what_was_designed(whole: Design, tmp_path: Path) -> None:
    path = tmp_path / "design" / "laws.yaml"
    write_design(whole, path)
    study = load_study(str(path))
    assert study.model_dump(exclude_unset=True) == {**whole.study}
    recipes = recipes_of(expand(study, output="results", overrides={}))
    assert [len(wave) for wave in waves(recipes)] == [16, 54]
    assert teacher_cells(recipes) == {arm.arm: arm.teacher for arm in whole.arms if arm.teacher is not None}
    for arm in whole.arms:
        recipe = recipes[arm.arm]
        assert recipe.budget.amount == arm.tokens
        assert recipe.objective.z_loss_weight == 1e-4
        assert recipe.objective.kind == ("ce" if arm.teacher is None else "forward_kl")
        layers = next(n for n in MLP if params(n) == arm.params)
        assert (recipe.student.kind, recipe.student.num_layers, recipe.student.vocab_size) == ("ladder", layers, VOCABULARY)
        layout = recipe.student.layout
        assert (layout.hidden_size, len(layout.layers), layout.tied_embeddings) == (128 * layers, layers, True)
        assert {layer.mlp.size for layer in layout.layers} == {MLP[layers]}
        if arm.teacher is not None:
            assert recipe.teacher is not None and recipe.teacher.model == f"results/runs/{arm.teacher}/student"
            assert recipe.teacher.context.window == recipe.data.sequence_length == 4096
            assert recipe.store_path == f"results/stores/{arm.teacher}-sampled-50"
    head = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    assert f"{whole.total_flops:.3g} FLOPs" in head[2]
    assert head[-1] == f"# Run or resume it: limbeck study run {path}"
    write_design(whole, path)
    assert load_study(str(path)) == study


def test_an_arm_says_no_more_than_its_base_does_not(whole: Design) -> None:
    """Of a member of the family the depth is all."""
    sizes = {key for changes in whole.study["arms"].values() for key in changes if key.startswith("student.")}
    assert sizes == {"student.num_layers"}


def test_an_olmo_takes_the_familys_sizes(recipe_file: Path) -> None:
    """Its norms of queries and keys are of d, not of d / 16."""
    found = made(Grid(teachers=members("198M")), recipe=str(recipe_file), vocab_size=300)
    (arm,) = found.arms
    assert arm.params == params(10) + 10 * 2 * (1280 - 80)
    (changes,) = found.study["arms"].values()
    assert {key.removeprefix("student."): value for key, value in changes.items() if key.startswith("student.")} == {
        "hidden_size": 1280,
        "num_layers": 10,
        "num_heads": 16,
        "num_kv_heads": 16,
        "head_dim": 80,
        "intermediate_size": MLP[10],
        "vocab_size": 300,
        "tied_embeddings": True,
    }


def test_any_recipe_can_be_the_base(recipe_file: Path, values: dict[str, Any]) -> None:
    """The quickstart's: a teacher of its own that gives the tokenizer, no vocabulary, no sampled signal asked for."""
    grid = Grid(students=members("layers=1"), teachers=members("layers=2"), student_tokens_per_parameter=(1,))
    found = made(grid, recipe="quickstart")
    names = list(found.study["arms"])
    assert names == ["teacher-1.71m-34.1m", "control-213k-214k", "213k-214k-from-1.71m-34.1m"]
    recipes = {
        arm: load_recipe("quickstart", {k: v for k, v in changes.items() if k != "teacher.arm"})
        for arm, changes in found.study["arms"].items()
    }
    for arm in names:
        assert recipes[arm].student.vocab_size == 49_152
        assert recipes[arm].evaluation.kl_to_teacher == ("from" in arm)
        assert recipes[arm].data == load_recipe("quickstart").data
    assert found.price.stores[0].tokens == 100_000  # the recipe's sample_tokens, read again and again by 213,888 tokens
    with pytest.raises(SpecError, match=r"student\.vocab_size is not set"):
        made(grid, recipe=str(recipe_file))
    tiny = made(grid, recipe=str(recipe_file), vocab_size=300)
    assert tiny.study["arms"][names[0]]["student.vocab_size"] == 300
    assert tiny.study["arms"][names[2]]["teacher.context.window"] == values["data"]["sequence_length"]


def test_a_width_of_its_own_leaves_nothing_to_vary(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    wide = {"kind": "ladder", "num_layers": 2, "hidden_size": 512, "vocab_size": 300}
    path.write_text(yaml.safe_dump({**values, "student": wide}), encoding="utf-8")
    with pytest.raises(SpecError, match=r"student\.hidden_size fixes the width that a design varies: remove it"):
        made(SOME, recipe=str(path))


@pytest.mark.parametrize(
    ("text", "layers"),
    [("198M", 10), ("ladder-198m", 10), ("LADDER-1.82B", 21), ("layers=2", 2), ("2M", 2), ("1e5", 1), ("10", 1), ("12.6B", 40)],
)
def test_sizes_are_read_as_people_write_them(text: str, layers: int) -> None:
    assert member_of(text, source="--students") == Member(layers)


@pytest.mark.parametrize("size", [3e5, 1e6, 9e6, 7e7, 5e8, 4e9, 3e10, 2e11])
def test_the_nearest_member_is_the_nearest_of_all(size: float) -> None:
    ratios = {layers: max(size / Member(layers).params, Member(layers).params / size) for layers in range(1, 150)}
    assert member_of(str(size), source="--students").num_layers == min(ratios, key=lambda layers: ratios[layers])


SOME = Grid(students=members("143M"), teachers=members("198M"))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: member_of("ladder-199m", source="--students"),
            "--students=ladder-199m is no size .*did you mean 'ladder-198m'",
        ),
        (lambda: member_of("layers=0", source="--teachers"), "--teachers=layers=0 is no size"),
        (lambda: made(Grid()), "this makes no arm: teachers needs --teachers; isoflop-students needs --students and"),
        (lambda: made(Grid(students=members("143M"))), "--students makes no arm"),
        (lambda: made(Grid(teachers=members("198M"), teacher_flops=(1e20,))), "--teacher-flops makes no arm"),
        (lambda: made(replace(SOME, protocols=("isoflop-students",))), "isoflop-students needs --student-flops"),
        (lambda: made(replace(SOME, protocols=("fixd",))), "protocol fixd is not known; did you mean 'fixed'"),
        (lambda: made(replace(SOME, student_flops=(1e12,))), "ladder-143m on 745 tokens: a step of laws takes 1,048,576"),
        (lambda: made(SOME, recipe="golf"), "golf: student.kind=golf has no sizes of the family: make it ladder or olmo3"),
        (lambda: made(SOME, recipe="law"), "law is neither a file nor one of the recipes; did you mean 'laws'"),
    ],
)
def test_a_design_that_cannot_be_is_refused(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        call()
