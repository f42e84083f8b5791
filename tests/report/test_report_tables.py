"""Every number in a table against hand arithmetic."""

import pytest
from handmade import DOCUMENTS, shifted

from limbeck.report.arms import difference, equal_cost
from limbeck.report.tables import cost_table, difference_table, equal_table, result_table, store_table
from limbeck.runs import Costs

END = Costs(step=20, tokens=4000, seconds=50.0, student_flops=2e12, teacher_flops=6e12, bytes_read=84_000)


def cells(table, row):
    return dict(zip(table.headers, (cell.replace("\xa0", " ") for cell in table.rows[row]), strict=True))


def test_results_of_control_arm_and_teacher(make_arm):
    control = make_arm("ce", kl_to_teacher_nats=1.5)
    arm = make_arm("kl", objective="forward_kl", documents=shifted(-0.25), kl_to_teacher_nats=1.25)
    table = result_table([control, arm], control=control, teacher={"name": "T", "bits_per_byte": 0.9})
    first, second, last = (cells(table, row) for row in range(3))
    assert first["bits per byte [95%]"].startswith(f"{21500 / 9200:.4f} [")
    assert first["minus control [95%]"] == "–"
    assert first["KL to teacher, nats/token"] == "1.5000"
    assert second["bits per byte [95%]"].startswith(f"{21500 / 9200 - 0.25:.4f} [")
    assert second["minus control [95%]"] == "−0.2500 [−0.2500, −0.2500]"
    assert second["verdict"] == "ahead"
    assert second["learns from"] == "forward_kl on sampled-50"
    assert last["bits per byte [95%]"] == "0.9000"


def test_costs_and_step_time(make_arm):
    control = make_arm("ce", end=Costs(step=10, tokens=2000, seconds=20.0, student_flops=1e12))
    arm = make_arm("kl", objective="forward_kl", end=END)
    row = cells(cost_table([control, arm], control=control), 1)
    assert row == {
        "arm": "kl",
        "steps": "20",
        "tokens": "4,000",
        "seconds": "50.0 s",
        "tokens/s": "80",
        "step time": "1.25×",
        "student FLOPs": "2.00 × 10¹²",
        "teacher FLOPs": "6.00 × 10¹²",
        "bytes read": "84 kB",
    }


def test_unfinished_missing_and_diverged_arms_are_shown_as_such(make_arm):
    control = make_arm("ce")
    half = make_arm("half", objective="forward_kl", evals=[(Costs(5, 500, 6.0, 5e11, 1e11, 10), 3.0)], finished=False)
    lost = make_arm("lost", objective="forward_kl", bits_per_byte=float("nan"))
    missing = type(control)("missing", None)
    arms = [control, half, lost, missing]
    results = result_table(arms, control=control, teacher=None)
    assert [row[2] for row in results.rows[1:]] == ["unfinished", "diverged", "unfinished"]
    costs = cost_table(arms, control=control)
    assert costs.rows[1][:3] == ("half, unfinished", "5", "500")
    assert costs.rows[3][1] == "–"
    assert {row[1] for row in equal_table(arms, control=control).rows} == {"unfinished", "diverged"}


def longer_run():
    return [(Costs(5, 1000, 5.0, 1e12, 3e12), 3.0), (Costs(10, 2000, 15.0, 2e12, 6e12), 2.6)]


def test_equal_seconds_reads_the_longer_curve_at_the_shorter_ones_end(make_arm):
    control = make_arm("ce", end=Costs(10, 2000, 10.0, 2e12), bits_per_byte=2.7)
    arm = make_arm("kl", objective="forward_kl", evals=longer_run(), end=Costs(10, 2000, 15.0, 2e12, 6e12), bits_per_byte=2.6)
    point = equal_cost(arm, control, "seconds")
    assert (point.at, point.arm, point.control, point.read_early) == (10.0, pytest.approx(2.8), 2.7, "arm")
    assert point.difference == pytest.approx(0.1)


def test_equal_seconds_reads_the_controls_curve_where_the_arm_ends_first(make_arm):
    arm = make_arm("kl", objective="forward_kl", end=Costs(10, 2000, 10.0, 2e12, 6e12), bits_per_byte=2.5)
    control = make_arm("ce", evals=longer_run(), end=Costs(10, 2000, 15.0, 2e12), bits_per_byte=2.6)
    point = equal_cost(arm, control, "seconds")
    assert (point.at, point.arm, point.control, point.read_early) == (10.0, 2.5, pytest.approx(2.8), "control")


def test_equal_flops_count_the_teacher_only_where_asked(make_arm):
    control = make_arm("ce", evals=[(Costs(5, 1000, 5.0, 1e12), 3.1)], end=Costs(10, 2000, 10.0, 6e12), bits_per_byte=2.7)
    arm = make_arm("kl", objective="forward_kl", evals=longer_run(), end=Costs(10, 2000, 15.0, 2e12, 6e12), bits_per_byte=2.6)
    student = equal_cost(arm, control, "student_flops")
    assert (student.at, student.arm, student.control) == (2e12, 2.6, pytest.approx(3.1 - 0.4 / 5))
    counted = equal_cost(arm, control, "all_flops")
    assert (counted.at, counted.arm, counted.control) == (6e12, pytest.approx(2.8), 2.7)


def test_curves_that_do_not_overlap_give_no_number(make_arm):
    control = make_arm("ce", end=Costs(10, 2000, 10.0, 2e12), bits_per_byte=2.7)
    arm = make_arm("kl", objective="forward_kl", evals=longer_run(), end=Costs(10, 2000, 15.0, 2e12, 6e12), bits_per_byte=2.6)
    assert equal_cost(arm, control, "all_flops").difference is None
    assert equal_table([control, arm], control=control).rows[0][4].startswith("no overlap")


def test_other_documents_of_the_same_total_size_do_not_compare(make_arm):
    control = make_arm("ce")
    arm = make_arm("kl", objective="forward_kl", documents=DOCUMENTS[::-1])
    assert difference(arm, control) is None
    assert "measured on other documents" in result_table([control, arm], control=control, teacher=None).rows[1]


def test_names_every_departure_from_the_control(make_arm):
    control = make_arm("ce")
    arm = make_arm("kl", objective="forward_kl", overrides={"optimizer.lr": 0.0007, "output": "elsewhere", "name": "x"})
    ((name, departures),) = difference_table([control, arm], control=control).rows
    assert name == "kl"
    assert "objective.kind=forward_kl" in departures
    assert "optimizer.lr=0.0007" in departures
    assert "output" not in departures
    assert "name=" not in departures


def test_stores_side_by_side(make_arm):
    arm = make_arm("kl", objective="forward_kl")
    sampled = {"kind": "sampled", "path": arm.run.recipe.store_path, "bytes": 2_093_000, "tail_mass": None}
    topk = {"kind": "topk", "path": "b", "tail_mass": 0.0871, "identity": {"teacher": {"fingerprint": "abc"}, "vocab_size": 9}}
    rows = {row[0]: [cell.replace("\xa0", " ") for cell in row[1:]] for row in store_table([sampled, topk], [arm]).rows}
    assert rows["read by"] == ["kl", "–"]
    assert rows["size"] == ["2.09 MB", "–"]
    assert rows["mean tail mass"] == ["not kept", "0.0871"]
    assert rows["teacher"] == ["–", "fingerprint=abc"]
    assert rows["vocab size"] == ["–", "9"]
