"""From a study to its cells: products of axes and seeds, names, and what makes no sense and is refused before anything runs."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.errors import SpecError
from limbeck.spec.base import parse
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.study import Study
from limbeck.spec.teacher import HuggingFaceTeacher
from limbeck.study.expand import Cells, expand, recipes_of, start_cells, waves
from limbeck.study.price import predict


def study_of(**values: Any) -> Study:
    return parse(Study, {"name": "s", "recipe": "quickstart", **values}, source="s.yaml")


def cells_of(overrides: dict[str, Any] | None = None, **values: Any) -> Cells:
    return expand(study_of(**values), output="out", overrides=overrides or {})


def refusal(**values: Any) -> str:
    with pytest.raises(SpecError) as caught:
        cells_of(**values)
    return str(caught.value)


def test_every_arm_is_crossed_with_its_axes_and_the_seeds() -> None:
    axes = {"signal.draws": [12, 50], "optimizer.lr": [1e-3, 2e-3, 4e-3]}
    cells = cells_of(arms={"kd": {"axes": axes}, "ce": {"objective.kind": "ce"}}, seeds=[3, 5])
    expected = {(draws, lr, seed) for draws, lr, seed in itertools.product([12, 50], [1e-3, 2e-3, 4e-3], [3, 5])}
    kd = [cell for cell in cells.values() if cell.arm == "kd"]
    assert {(cell.recipe.signal.draws, cell.recipe.optimizer.lr, cell.recipe.seed) for cell in kd} == expected  # type: ignore[union-attr]
    assert len(kd) == 12
    assert {cell.recipe.seed for cell in cells.values() if cell.arm == "ce"} == {3, 5}
    one = cells["kd-draws12-lr0.002-seed5"]
    assert one.settings == {"signal.draws": 12, "optimizer.lr": 2e-3}
    assert (one.variant, one.seed, one.recipe.run_path) == ("kd-draws12-lr0.002", 5, "out/runs/kd-draws12-lr0.002-seed5")


def test_an_axis_of_the_study_goes_to_the_arms_that_it_changes_and_leaves_the_others_alone() -> None:
    arms = {"kd": {}, "ce": {"objective.kind": "ce"}}
    assert list(cells_of(arms=arms, axes={"signal.draws": [12, 50]})) == ["kd-draws12", "kd-draws50", "ce"]
    both = cells_of(arms=arms, axes={"optimizer.lr": [1e-3, 2e-3]})
    assert list(both) == ["kd-lr0.001", "kd-lr0.002", "ce-lr0.001", "ce-lr0.002"]


def test_values_with_labels_may_change_several_keys_and_a_bare_number_is_named_with_its_axis() -> None:
    sizes = {"small": {"student.num_layers": 2, "student.intermediate_size": 64}, "large": {"student.num_layers": 3}}
    mixing = {0.25: {"optimizer.lr": 1e-3}, 0.5: {"optimizer.lr": 2e-3}}
    cells = cells_of(axes={"size": sizes, "alpha": mixing})
    assert list(cells) == [f"student-{size}-alpha{alpha}" for size in ("small", "large") for alpha in (0.25, 0.5)]
    cell = cells["student-small-alpha0.5"]
    assert cell.settings == {"size": "small", "alpha": 0.5}
    assert (cell.recipe.student.num_layers, cell.recipe.student.intermediate_size) == (2, 64)  # type: ignore[union-attr]
    assert cell.recipe.optimizer.lr == 2e-3


def test_what_is_set_nearer_to_the_cell_wins() -> None:
    arms = {"plain": {}, "own": {"optimizer.lr": 0.03}}
    settings = {"optimizer.lr": 0.01, "batch.sequences": 2}
    cells = cells_of(arms=arms, settings=settings, overrides={"optimizer.lr": 0.02})
    assert [cell.recipe.optimizer.lr for cell in cells.values()] == [0.02, 0.03]
    assert {cell.recipe.batch.sequences for cell in cells.values()} == {2}


def test_a_teacher_with_seeds_teaches_the_student_of_its_own_seed_and_one_without_teaches_all() -> None:
    arms = {"teacher": {"objective.kind": "ce", "student.num_layers": 2}, "kd": {"teacher.arm": "teacher"}}
    cells = cells_of(arms=arms, seeds=[0, 1])
    models = {
        name: cell.recipe.teacher.model for name, cell in cells.items() if isinstance(cell.recipe.teacher, HuggingFaceTeacher)
    }
    assert models == {f"kd-seed{seed}": f"out/runs/teacher-seed{seed}/student" for seed in (0, 1)}
    arms["teacher"]["seeds"] = [7]
    cells = cells_of(arms=arms, seeds=[0, 1])
    assert cells["teacher"].recipe.seed == 7
    assert {cells[f"kd-seed{seed}"].recipe.teacher.model for seed in (0, 1)} == {"out/runs/teacher/student"}  # type: ignore[union-attr]


def test_an_arm_goes_on_from_another_arms_student_of_its_own_seed() -> None:
    second = {"student.arm": "first", "student.adapter": {"kind": "lora", "rank": 2}, "objective.kind": "ce"}
    arms = {"second": second, "first": {"objective.kind": "ce", "student.num_layers": 2}}
    cells = cells_of(arms=arms, seeds=[0, 1])
    students = {
        name: cell.recipe.student for name, cell in cells.items() if isinstance(cell.recipe.student, HuggingFaceStudent)
    }
    assert {name: student.model for name, student in students.items()} == {
        f"second-seed{seed}": f"out/runs/first-seed{seed}/student" for seed in (0, 1)
    }
    assert all(student.adapter is not None and student.adapter.rank == 2 for student in students.values())
    assert waves(recipes_of(cells)) == [["first-seed0", "first-seed1"], ["second-seed0", "second-seed1"]]
    assert start_cells(recipes_of(cells)) == {f"second-seed{seed}": f"first-seed{seed}" for seed in (0, 1)}


def test_the_price_of_going_on_is_that_of_the_student_gone_on_from() -> None:
    arms = {"first": {"objective.kind": "ce", "seed": 1}, "second": {"student.arm": "first", "objective.kind": "ce"}}
    study = study_of(arms=arms)
    first, second = predict(study, expand(study, output="out", overrides={})).price.arms
    assert (second.params, second.student_flops, second.tokens) == (first.params, first.student_flops, first.tokens)
    assert first.student_flops is not None and first.student_flops > 6 * first.params


def test_who_goes_on_pruned_again_is_priced_with_both_prunings(teacher_folder: Path) -> None:
    """Counted on modules of the sizes that are left: 24 channels, 40 neurons, one of four heads, one of two layers."""
    first = {"kind": "huggingface", "model": str(teacher_folder), "prune": {"hidden_size": 24, "num_heads": 2}}
    again = {"intermediate_size": 40, "num_kv_heads": 1, "num_layers": 1, "keep_first": 0, "keep_last": 0}
    whole = json.loads((teacher_folder / "config.json").read_text())
    assert (whole["num_attention_heads"], whole["num_key_value_heads"], whole["num_hidden_layers"]) == (4, 2, 2)
    shapes = {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1, "head_dim": 8}
    values = {**whole, "hidden_size": 24, "intermediate_size": 40, **shapes}
    arms = {
        "first": {"objective.kind": "ce", "student": first},
        "second": {"student.arm": "first", "student.prune": again, "objective.kind": "ce"},
        "own": {"objective.kind": "ce", "student.num_layers": 4},
        "own-second": {"student.arm": "own", "student.prune": {"num_layers": 2}, "objective.kind": "ce"},
        "own-two": {"objective.kind": "ce", "student.num_layers": 2, "seed": 1},
    }
    study = study_of(arms=arms)
    priced = {arm.arm: arm for arm in predict(study, expand(study, output="out", overrides={})).price.arms}
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    assert priced["second"].total_params == sum(parameter.numel() for parameter in made.parameters())
    assert priced["own-second"].params == priced["own-two"].params < priced["own"].params


def test_teachers_can_be_an_axis() -> None:
    alone = {"objective.kind": "ce", "axes": {"student.num_layers": [2, 3]}}
    taught = {"axes": {"from": {"two": {"teacher.arm": "alone-num_layers2"}, "three": {"teacher.arm": "alone-num_layers3"}}}}
    cells = cells_of(arms={"alone": alone, "taught": taught})
    assert [cells[f"taught-{name}"].recipe.teacher.model for name in ("two", "three")] == [  # type: ignore[union-attr]
        f"out/runs/alone-num_layers{layers}/student" for layers in (2, 3)
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"axes": {"signal.drows": [1, 2]}}, "signal.drows is not a key; did you mean 'draws'?"),
        ({"arms": {"a": {"axes": {"optimiser.lr": [1, 2]}}}}, "optimiser is not a key; did you mean 'optimizer'?"),
        ({"arms": {"ce": {"objective.kind": "ce"}}, "axes": {"signal.draws": [12, 50]}}, "axes.signal.draws changes nothing"),
        (
            {"arms": {"ce": {"objective.kind": "ce", "axes": {"signal.draws": [12, 50]}}}},
            "arms.ce.axes.signal.draws: draws12 and draws50 are the same run",
        ),
        ({"axes": {"lr": {"a": {"optimizer.lr": 1e-3}, "b": {"optimizer.lr": 1e-3}, "c": {"optimizer.lr": 2e-3}}}}, "a and b"),
        ({"axes": {"signal.draws": [50]}}, "axes.signal.draws has 1 value"),
        ({"axes": {"signal.draws": [50, 50]}}, "axes.signal.draws has the same value twice"),
        ({"axes": {"signal.draws": 50}}, "axes.signal.draws=50 is not a list of values"),
        ({"axes": {"signal": [{"kind": "hard"}, {"kind": "dense"}]}}, "give each value a label"),
        ({"arms": {"a": {}, "b": {"name": "b"}}}, "a and b are the same run"),
        ({"arms": {"a": {"teacher.arm": "nobody"}}}, "arms.a: teacher.arm=nobody is not one of the arms"),
        (
            {"arms": {"t": {"objective.kind": "ce", "axes": {"seed": [1, 2]}}, "a": {"teacher.arm": "t"}}},
            "name one of its cells (t-seed1, t-seed2)",
        ),
        ({"arms": {"a": {"seeds": 3}}}, "arms.a.seeds=3 is not a list of whole numbers"),
        ({"compare": {"student": "student"}}, "an arm is no different from itself"),
        ({"evals": ["bits_per_byte", "bits_per_byte"]}, "evals is a list of kinds, each once"),
        ({"evals": ["bits_per_bite"]}, "bits_per_bite"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(values: dict[str, Any], said: str) -> None:
    text = refusal(**values)
    assert said in text
    assert "\n" not in text


def test_a_misspelt_axis_says_in_which_study_and_arm() -> None:
    assert refusal(axes={"signal.drows": [1, 2]}).startswith("study s, student, axis signal.drows: quickstart: ")


def test_a_whole_part_that_an_arm_sets_is_not_changed_by_a_key_of_the_settings() -> None:
    """The later layer wins, whatever the depth of its paths."""
    arms = {"own": {"budget": {"kind": "seconds", "amount": 5}}, "plain": {}}
    cells = cells_of(arms=arms, settings={"budget.amount": 120}, overrides={"budget.amount": 130})
    budgets = [(cell.recipe.budget.kind, cell.recipe.budget.amount) for cell in cells.values()]
    assert budgets == [("seconds", 5), ("tokens", 130)]


def test_a_cell_of_one_seed_is_found_by_its_name_with_and_without_it() -> None:
    arms = {"ce": {"objective.kind": "ce"}, "self": {"teacher.arm": "ce-seed0"}}
    for seeds in ([0], [0, 1]):
        cells = cells_of(arms=arms, seeds=seeds)
        taught = cells["self" if len(seeds) == 1 else "self-seed1"].recipe.teacher
        assert isinstance(taught, HuggingFaceTeacher)
        assert taught.model == f"out/runs/{'ce' if len(seeds) == 1 else 'ce-seed0'}/student"


def test_a_name_that_yaml_reads_otherwise_is_told() -> None:
    assert "put it in quotes" in refusal(axes={True: [1, 2]})
