"""Controls that a study makes by itself: the same student without a teacher, with the same of tokens, seconds or FLOPs."""

from typing import Any

import pytest

from limbeck.errors import SpecError
from limbeck.spec.base import parse
from limbeck.spec.objective import needs_teacher
from limbeck.spec.study import Study
from limbeck.study.controls import compared_with, decisions, with_controls, with_named_controls
from limbeck.study.expand import Cells, essence, expand
from limbeck.study.run import check_controls, check_stores


def study_of(**values: Any) -> Study:
    return parse(Study, {"name": "s", "recipe": "quickstart", **values}, source="s.yaml")


def cells_of(study: Study, *, spent: dict[str, Any] | None = None) -> Cells:
    cells = with_named_controls(study, expand(study, output="out", overrides={}))
    return with_controls(study, with_controls(study, cells, spent={}), spent=spent or {})


def costs(*, tokens: float = 150_000, seconds: float, student: float = 1e13, teacher: float = 0.0) -> dict[str, float]:
    return {"tokens": tokens, "seconds": seconds, "student_flops": student, "teacher_flops": teacher}


def test_every_taught_cell_gets_three_controls_and_cells_share_what_is_the_same_run() -> None:
    study = study_of(axes={"signal.draws": [12, 50]}, seeds=[0, 1])
    assert study.bases == ("tokens", "seconds", "flops")
    before = cells_of(study)
    controls = [name for name in before if name.startswith("control")]
    assert controls == ["control-tokens-seed0", "control-tokens-seed1"]  # the others' budgets are not known yet
    taught = [name for name in before if not name.startswith("control")]
    spent = {name: costs(seconds=100 + 20 * ("50" in name), teacher=3e13) for name in taught}
    spent |= {name: costs(seconds=90) for name in controls}
    cells = cells_of(study, spent=spent)
    for seed in (0, 1):
        for draws, seconds in ((12, 100.0), (50, 120.0)):
            found = cells[f"student-draws{draws}-seed{seed}"].controls
            assert found["tokens"] == f"control-tokens-seed{seed}"
            control = cells[found["seconds"]].recipe
            assert (control.budget.kind, control.budget.amount, control.seed) == ("seconds", seconds, seed)
            flops = cells[found["flops"]].recipe.budget
            assert (flops.kind, flops.amount) == ("flops", 4e13)
    assert len(cells) == len(before) + 2 * 2 + 2  # two times per seed, and one number of FLOPs


def test_a_control_is_the_same_student_and_learns_from_the_text_alone() -> None:
    study = study_of(settings={"objective.z_loss_weight": 1e-4, "optimizer.lr": 3e-3})
    cells = cells_of(study)
    taught, control = cells["student"].recipe, cells["control-tokens"].recipe
    assert not needs_teacher(control.objective)
    assert control.objective.z_loss_weight == 1e-4
    differing = {key for key in essence(taught) if essence(taught)[key] != essence(control)[key]}
    assert differing == {"objective", "signal"}
    assert control.name == "control-tokens"
    assert control.run_path == "out/runs/control-tokens"


def test_an_arm_that_is_the_control_already_is_not_run_twice() -> None:
    study = study_of(arms={"kd": {}, "ce": {"objective.kind": "ce"}}, equal=["tokens"])
    cells = cells_of(study)
    assert list(cells) == ["kd", "ce"]
    assert cells["kd"].controls == {"tokens": "ce"}
    assert cells["ce"].controls == {}


def test_what_took_as_long_within_the_tolerance_is_the_control_already() -> None:
    study = study_of(arms={"kd": {}, "ce": {"objective.kind": "ce"}}, equal=["tokens", "seconds"], tolerance=0.03)
    for seconds, control in ((98.0, "ce"), (102.9, "ce"), (96.0, "control-seconds-kd")):
        cells = cells_of(study, spent={"kd": costs(seconds=100), "ce": costs(seconds=seconds)})
        assert cells["kd"].controls["seconds"] == control, seconds


def test_the_teachers_flops_count_as_the_study_says() -> None:
    for share, amount in ((0.0, 1e13), (0.25, 1.75e13), (1.0, 4e13)):
        study = study_of(equal=["flops"], teacher_share=share)
        cells = cells_of(study, spent={"student": costs(seconds=1, teacher=3e13)})
        assert cells[cells["student"].controls["flops"]].recipe.budget.amount == amount


def test_a_budget_in_seconds_has_its_control_at_once_and_one_in_tokens_later() -> None:
    study = study_of(settings={"budget": {"kind": "seconds", "amount": 30}}, equal=["tokens", "seconds"])
    cells = cells_of(study)
    assert cells["student"].controls == {"seconds": "control-seconds"}
    cells = cells_of(study, spent={"student": costs(tokens=123_456, seconds=30.2)})
    control = cells[cells["student"].controls["tokens"]].recipe.budget
    assert (control.kind, control.amount) == ("tokens", 123_456)


def test_an_arm_that_writes_has_a_control_that_reads_as_many_tokens_as_it_wrote() -> None:
    """Known only afterwards: the steps of such an arm are no measure of its tokens."""
    written = {
        "signal": {"kind": "dense"},
        "objective": {"kind": "reverse_kl"},
        "on_policy": {"max_new_tokens": 64},
        "budget": {"kind": "steps", "amount": 10},
    }
    study = study_of(settings=written, equal=["tokens"])
    assert [*cells_of(study)] == ["student"]
    cells = cells_of(study, spent={"student": costs(tokens=7_654, seconds=30.0)})
    control = cells[cells["student"].controls["tokens"]].recipe
    assert (control.budget.kind, control.budget.amount) == ("tokens", 7_654)
    assert control.on_policy is None and not needs_teacher(control.objective)


def test_students_that_differ_have_controls_of_their_own() -> None:
    study = study_of(axes={"student.num_layers": [2, 3]}, equal=["tokens"])
    cells = cells_of(study)
    for layers in (2, 3):
        control = cells[cells[f"student-num_layers{layers}"].controls["tokens"]]
        assert control.recipe.student.num_layers == layers  # type: ignore[union-attr]


def test_a_control_without_its_teacher_is_shared_by_students_of_several_teachers() -> None:
    """Where tokenizer and vocabulary are the recipe's own; otherwise they may be the teacher's, and are not known here."""
    teachers = {
        "a": {"teacher": {"kind": "huggingface", "model": "a"}},
        "b": {"teacher": {"kind": "huggingface", "model": "b"}},
    }
    own = {"data.tokenizer": "t", "student.vocab_size": 300}
    shared = cells_of(study_of(axes={"from": teachers}, settings=own, equal=["tokens"]))
    assert [name for name in shared if name.startswith("control")] == ["control-tokens"]
    assert shared["control-tokens"].recipe.teacher is None
    apart = cells_of(study_of(axes={"from": teachers}, equal=["tokens"]))
    assert len([name for name in apart if name.startswith("control")]) == 2


def test_a_stopped_study_finds_its_controls_again() -> None:
    study = study_of(axes={"signal.draws": [12, 50]})
    spent = {"student-draws12": costs(seconds=100), "student-draws50": costs(seconds=101), "control-tokens": costs(seconds=90)}
    once = cells_of(study, spent=spent)
    again = cells_of(study, spent={**spent, "control-seconds-student-draws12": costs(seconds=100.3)})
    assert {name: essence(cell.recipe) for name, cell in once.items()} == {
        name: essence(cell.recipe) for name, cell in again.items()
    }
    assert once["student-draws50"].controls == again["student-draws50"].controls
    assert once["student-draws50"].controls["seconds"] == "control-seconds-student-draws12"


def test_budgets_that_differ_are_not_compared_as_equal() -> None:
    study = study_of(arms={"kd": {"budget.amount": 200_000}, "ce": {"objective.kind": "ce"}}, control="ce")
    with pytest.raises(SpecError, match="kd has a budget of tokens=200000 and its control ce of tokens=150000"):
        check_controls(study, cells_of(study))


def test_named_controls_are_paired_by_seed_and_by_shared_axes() -> None:
    arms = {"kd": {}, "ce": {"objective.kind": "ce"}}
    cells = cells_of(study_of(arms=arms, control="ce", axes={"optimizer.lr": [1e-3, 2e-3]}, seeds=[0, 1]))
    assert study_of(arms=arms, control="ce").bases == ()
    for lr in (0.001, 0.002):
        for seed in (0, 1):
            assert set(cells[f"kd-lr{lr}-seed{seed}"].controls.values()) == {f"ce-lr{lr}-seed{seed}"}
            assert cells[f"ce-lr{lr}-seed{seed}"].controls == {}


def test_seeds_that_are_an_axis_have_controls_of_their_own() -> None:
    cells = cells_of(study_of(axes={"seed": [1, 2]}, equal=["tokens"]))
    for seed in (1, 2):
        control = cells[cells[f"student-seed{seed}"].controls["tokens"]]
        assert control.recipe.seed == seed
    assert len({cells[f"student-seed{seed}"].controls["tokens"] for seed in (1, 2)}) == 2


def test_what_was_decided_stands_whoever_finishes_first_and_whatever_a_second_run_took() -> None:
    study = study_of(axes={"signal.draws": [12, 50]}, equal=["seconds"])
    cells = with_controls(study, expand(study, output="out", overrides={}), spent={})
    first = with_controls(study, cells, spent={"student-draws50": costs(seconds=101)})
    decided = decisions(first)
    both = {"student-draws12": costs(seconds=100), "student-draws50": costs(seconds=101)}
    later = with_controls(study, cells, spent=both, decided=decided)
    assert {cell.controls["seconds"] for cell in later.values() if cell.taught} == {"control-seconds-student-draws50"}
    again = with_controls(study, cells, spent={**both, "student-draws50": costs(seconds=102)}, decided=decided)
    assert again["control-seconds-student-draws50"].recipe.budget.amount == 101
    slower = with_controls(study, cells, spent={**both, "student-draws50": costs(seconds=150)}, decided=decided)
    control = slower[slower["student-draws50"].controls["seconds"]]
    assert (control.recipe.budget.amount, control.name) == (150, "control-seconds-student-draws50-2")


def test_a_named_control_that_is_not_one_cell_is_refused() -> None:
    few = {"kd": {}, "ce": {"objective.kind": "ce", "seeds": [0]}}
    with pytest.raises(SpecError, match="kd-seed1: its control is the arm ce, but no cell of it has the same seed"):
        cells_of(study_of(arms=few, control="ce", seeds=[0, 1]))
    many = {"kd": {}, "ce": {"objective.kind": "ce", "axes": {"optimizer.lr": [1e-3, 2e-3]}}}
    with pytest.raises(SpecError, match="kd: its control is the arm ce, but 2 of its cells have the same seed"):
        cells_of(study_of(arms=many, control="ce"))


def test_an_arm_is_compared_with_a_variant_that_is_there() -> None:
    arms = {"kd": {"axes": {"signal.draws": [12, 50]}}, "plain": {"objective.kind": "hard", "signal": {"kind": "hard"}}}
    study = study_of(arms=arms, compare={"kd": "plain"}, equal=[])
    cells = cells_of(study)
    assert {compared_with(study, cell, cells) for cell in cells.values() if cell.arm == "kd"} == {"plain"}
    with pytest.raises(SpecError, match="kd-draws12 is to be compared with nobody"):
        check_controls(study_of(arms=arms, compare={"kd": "nobody"}, equal=[]), cells)


def test_cells_that_read_other_rows_do_not_share_a_store() -> None:
    cells = cells_of(study_of(axes={"data.train.sample_tokens": [50_000, 100_000]}, equal=[]))
    with pytest.raises(SpecError, match="student-sample_tokens50000 and student-sample_tokens100000 read other rows"):
        check_stores(cells)
    axis = {str(n): {"data.train.sample_tokens": n, "store": f"out/stores/{n}"} for n in (50_000, 100_000)}
    check_stores(cells_of(study_of(axes={"texts": axis}, equal=[])))
