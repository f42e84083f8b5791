"""Every number in a table against hand arithmetic."""

import dataclasses
import statistics

import pytest
from handmade import BITS, cell, result, shifted, study

from limbeck.eval_results import EvalResult, Metric
from limbeck.report.arms import arms_of
from limbeck.report.cells import Prediction
from limbeck.report.comparisons import comparisons, equal_reading, outcome_at
from limbeck.report.eval_tables import detail_tables, metric_difference_table, metric_table
from limbeck.report.predicted import predicted_table
from limbeck.report.setup import difference_table, environment_table, fidelity_table, store_table
from limbeck.report.tables import arms_table, cells_table, cost_table, equal_table
from limbeck.runs import Costs

END = Costs(step=20, tokens=4000, seconds=50.0, student_flops=2e12, teacher_flops=6e12, bytes_read=84_000)
ON_ALL = dict.fromkeys(("tokens", "seconds", "flops"), "ce")


def cells(table, row):
    return dict(zip(table.headers, (cell.replace("\xa0", " ") for cell in table.rows[row]), strict=True))


def two(make_run, control=None, arm=None):
    """A control and an arm of one seed."""
    taught = make_run(objective="forward_kl", **(arm or {}))
    return arms_of(study(cell("ce", make_run(**(control or {}))), cell("kl", taught, controls=ON_ALL)))


def test_results_of_control_arm_and_teacher(make_run):
    arm = {"documents": shifted(-0.25), "kl_to_teacher_nats": 1.25, "parameters": {"total": 900}}
    arms = two(make_run, {"kl_to_teacher_nats": 1.5}, arm)
    table = arms_table(arms, found=comparisons(arms), teacher={"name": "T", "bits_per_byte": 0.9})
    first, second, last = (cells(table, row) for row in range(3))
    assert first["arm"] == "ce (control)"
    assert first["bits per byte"].startswith(f"{BITS:.4f} [")
    assert first["minus its control, equal tokens"] == "–"
    assert first["KL to teacher, nats"] == "1.5000"
    assert second["bits per byte"].startswith(f"{BITS - 0.25:.4f} [")
    assert second["minus its control, equal tokens"] == "−0.2500 [−0.2500, −0.2500], ahead (1 seed; documents)"
    assert second["learns from"] == "forward_kl on sampled-50"
    assert (second["parameters"], second["tokens"], second["seconds"]) == ("900", "1,000", "10.0 s")
    assert last["bits per byte"] == "0.9000"


def test_means_and_spread_over_seeds(seeds):
    bits = [2.3, 2.35, 2.4]
    arms = arms_of(study(*seeds("ce", [2.5, 2.5, 2.6]), *seeds("kl", bits, controls="ce", objective="forward_kl")))
    row = cells(arms_table(arms, found=comparisons(arms), teacher=None), 1)
    assert row["bits per byte"] == f"2.3500 ± {statistics.stdev(bits):.4f}"
    assert row["n"] == "3"
    assert row["minus its control, equal tokens"].startswith(f"−{0.55 / 3:.4f} [")
    assert row["minus its control, equal tokens"].endswith("], ahead")
    record = arms_table(arms, found=comparisons(arms), teacher=None).records[1]
    assert record["bits_per_byte_sd"] == pytest.approx(0.05)
    assert record["minus_control_tokens_over"] == "seeds"


def test_costs_step_time_and_the_whole_study(make_run):
    arms = two(make_run, {"end": Costs(step=10, tokens=2000, seconds=20.0, student_flops=1e12)}, {"end": END})
    assert cells(cost_table(arms), 1) == {
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
    whole = cells(cost_table(arms), 2)
    assert (whole["arm"], whole["tokens"], whole["seconds"]) == ("all 2 runs", "6,000", "70.0 s")
    assert whole["student FLOPs"] == "3.00 × 10¹²"


def test_unfinished_missing_and_diverged_arms_are_shown_as_such(make_run):
    half = make_run(objective="forward_kl", evals=[(Costs(5, 500, 6.0, 5e11, 1e11, 10), 3.0)], finished=False)
    lost = make_run(objective="forward_kl", bits_per_byte=float("nan"))
    others = [
        cell("half", half, controls=ON_ALL),
        cell("lost", lost, controls=ON_ALL),
        cell("missing", None, controls=ON_ALL),
        cell("failed", None, status="failed", note="out of memory", controls=ON_ALL),
    ]
    arms = arms_of(study(cell("ce", make_run()), *others))
    results = arms_table(arms, found=comparisons(arms), teacher=None)
    assert [row[2] for row in results.rows[1:]] == ["stopped", "diverged", "waiting", "failed"]
    costs = cost_table(arms)
    assert costs.rows[1][:3] == ("half, stopped", "5", "500")
    assert costs.rows[3][1] == "–"
    assert {row[1] for row in equal_table(arms).rows} == {"stopped", "diverged", "waiting", "failed"}
    assert [(row[0], row[3], row[5]) for row in cells_table(arms).rows][-1] == ("failed", "failed", "out of memory")


def longer_run():
    return [(Costs(5, 1000, 5.0, 1e12, 3e12), 3.0), (Costs(10, 2000, 15.0, 2e12, 6e12), 2.6)]


def readings(make_run, control, arm):
    arms = two(make_run, control, arm)
    pair = (arms.by_cell["kl"], arms.by_cell["ce"])
    return arms, lambda cost: equal_reading([pair], cost, arms=arms)


def test_a_reading_of_seeds_that_share_a_control_has_no_interval_and_no_outcome(seeds):
    slow = Costs(step=10, tokens=1000, seconds=20.0, student_flops=1e12)
    arm = seeds("kl", [2.0, 2.01, 2.02], objective="forward_kl", end=slow)
    shared = [dataclasses.replace(each, controls={"tokens": "ce-1"}) for each in arm]
    arms = arms_of(study(*seeds("ce", [2.3], end=END), *shared))
    pairs = [(member, arms.by_cell["ce-1"]) for member in arms.named("kl").members]
    point = equal_reading(pairs, "student_flops", arms=dataclasses.replace(arms, tolerance=0.6))
    assert point.difference.value == pytest.approx(2.01 - 2.3)
    assert (point.difference.low, point.difference.high, point.pairs) == (None, None, 3)
    assert outcome_at(point, 0.001) == "unknown"


def test_equal_seconds_reads_the_longer_curve_at_the_shorter_ones_end(make_run):
    longer = {"evals": longer_run(), "end": Costs(10, 2000, 15.0, 2e12, 6e12), "bits_per_byte": 2.6}
    _, read = readings(make_run, {"end": Costs(10, 2000, 10.0, 2e12), "bits_per_byte": 2.7}, longer)
    point = read("seconds")
    assert (point.at, point.arm, point.control, point.read_early) == (10.0, pytest.approx(2.8), 2.7, "arm")
    assert point.difference.value == pytest.approx(0.1)
    assert point.difference.low is None


def test_equal_seconds_reads_the_controls_curve_where_the_arm_ends_first(make_run):
    longer = {"evals": longer_run(), "end": Costs(10, 2000, 15.0, 2e12), "bits_per_byte": 2.6}
    _, read = readings(make_run, longer, {"end": Costs(10, 2000, 10.0, 2e12, 6e12), "bits_per_byte": 2.5})
    point = read("seconds")
    assert (point.at, point.arm, point.control, point.read_early) == (10.0, 2.5, pytest.approx(2.8), "control")


def test_equal_flops_count_the_teacher_only_where_asked(make_run):
    control = {"evals": [(Costs(5, 1000, 5.0, 1e12), 3.1)], "end": Costs(10, 2000, 10.0, 6e12), "bits_per_byte": 2.7}
    longer = {"evals": longer_run(), "end": Costs(10, 2000, 15.0, 2e12, 6e12), "bits_per_byte": 2.6}
    _, read = readings(make_run, control, longer)
    student, counted = read("student_flops"), read("all_flops")
    assert (student.at, student.arm, student.control) == (2e12, 2.6, pytest.approx(3.1 - 0.4 / 5))
    assert (counted.at, counted.arm, counted.control) == (6e12, pytest.approx(2.8), 2.7)


def test_curves_that_do_not_overlap_give_no_number(make_run):
    longer = {"evals": longer_run(), "end": Costs(10, 2000, 15.0, 2e12, 6e12), "bits_per_byte": 2.6}
    arms, read = readings(make_run, {"end": Costs(10, 2000, 10.0, 2e12), "bits_per_byte": 2.7}, longer)
    assert read("all_flops").difference is None
    assert equal_table(arms).rows[0][4].startswith("no overlap")


def test_names_every_departure_from_the_control(make_run):
    arms = two(make_run, None, {"overrides": {"optimizer.lr": 0.0007, "output": "elsewhere", "name": "x"}})
    ((name, other, departures),) = difference_table(arms).rows
    assert (name, other) == ("kl", "ce")
    assert "objective.kind=forward_kl" in departures
    assert "optimizer.lr=0.0007" in departures
    assert "output" not in departures
    assert "name=" not in departures


def test_machines_that_differ_are_named_with_their_runs(make_run):
    arms = two(make_run)
    arms.by_cell["kl"].run.environment["processor"] = "another"
    rows = dict(environment_table(arms).rows)
    assert rows["device"] == "cpu"
    assert rows["processor"].endswith("; kl: another")


def test_stores_side_by_side(make_run):
    arms = two(make_run)
    path = arms.by_cell["kl"].run.recipe.store_path
    sampled = {"kind": "sampled", "path": path, "bytes": 2_093_000, "tail_mass": None}
    topk = {"kind": "topk", "path": "b", "tail_mass": 0.0871, "identity": {"teacher": {"fingerprint": "abc"}, "vocab_size": 9}}
    rows = {row[0]: [cell.replace("\xa0", " ") for cell in row[1:]] for row in store_table([sampled, topk], arms).rows}
    assert rows["read by"] == ["kl", "–"]
    assert rows["size"] == ["2.09 MB", "–"]
    assert rows["mean tail mass"] == ["not kept", "0.0871"]
    assert rows["teacher"] == ["–", "fingerprint=abc"]
    assert rows["vocab size"] == ["–", "9"]


def test_fidelity_has_a_row_for_every_source_and_their_sum():
    source = {"name": "truncation", "nats": 0.0125, "nature": "bias", "how": "a bound"}
    unknown = {"name": "teacher", "nats": None, "nature": "bias", "how": "no reference"}
    table = fidelity_table({"out/store": {"sources": [source, unknown], "total_nats": 0.0125}})
    assert [row[1:4] for row in table.rows] == [
        ("truncation", "0.0125", "bias"),
        ("teacher", "–", "bias"),
        ("sum", "0.0125", ""),
    ]


def test_predicted_beside_measured(make_run):
    said = Prediction(tokens=4000, student_flops=1e12, teacher_flops=6e12, seconds=100.0, store_bytes=None)
    run = make_run(objective="forward_kl", end=END)
    arms = arms_of(study(cell("kl", run, predicted=said), cell("ce", make_run())))
    table = predicted_table(arms, [{"path": run.recipe.store_path, "bytes": 10}])
    assert len(table.rows) == 1
    row = cells(table, 0)
    assert row["tokens"] == "4,000 → 4,000 (1.00×)"
    assert row["student FLOPs"] == "1.00 × 10¹² → 2.00 × 10¹² (2.00×)"
    assert row["seconds"] == "100.0 s → 50.0 s (0.50×)"
    assert row["store bytes"] == "–"
    assert table.records[0]["seconds_ratio"] == 0.5
    assert predicted_table(arms_of(study(cell("ce", make_run()))), []) is None


ECE = {"ce": [0.10, 0.12, 0.14], "kl": [0.05, 0.08, 0.11]}


@pytest.fixture
def measured(seeds):
    found = []
    for arm, controls in (("ce", ""), ("kl", "ce")):
        for each, value in zip(seeds(arm, [2.3, 2.4, 2.5], controls=controls), ECE[arm], strict=True):
            table = {"by length": {"headers": ["tokens", "score"], "rows": [[128, value], [2048, "none"]]}}
            evals = {"calibration": result("calibration", {"ece": value}, details={"tables": table})}
            found.append(cell(each.arm, each.run, seed=each.seed, controls=each.controls, evals=evals))
    return arms_of(study(*found))


def test_metrics_over_seeds_with_teachers_below(measured):
    teacher = EvalResult("calibration", "calibration", "T", {}, {"ece": Metric(0.015, 0.01, 0.02, 9, "lower")})
    table = metric_table("calibration", measured, {"T": {"calibration": teacher}})
    assert table.headers == ("arm", "n", "ece")
    rows = [[text.replace("\xa0", " ") for text in row] for row in table.rows]
    assert rows == [
        ["ce", "3", "0.1200 ± 0.020"],
        ["kl", "3", "0.08000 ± 0.030"],
        ["teacher T", "", "0.01500 [0.01000, 0.02000]"],
    ]
    assert [record["ece"] for record in table.records] == [*ECE["ce"], *ECE["kl"], 0.015]


def test_metric_differences_are_paired_by_seed(measured):
    from scipy import stats

    record = metric_difference_table("calibration", measured).records[0]
    known = stats.ttest_rel(ECE["kl"], ECE["ce"]).confidence_interval(0.95)
    assert (record["arm"], record["against"], record["pairs"]) == ("kl", "ce", 3)
    assert record["difference"] == pytest.approx(-0.04)
    assert (record["low"], record["high"]) == pytest.approx((known.low, known.high))


TIMES = [4.0, 5.0, 6.5]


def latencies(seeds, *, end=None, **of_last):
    """Three seeds of a control and an arm, of which the last was measured otherwise."""
    found = []
    for arm, controls in (("ce", ""), ("kl", "ce")):
        own = {"end": end} if end is not None and arm == "kl" else {}
        for each, value in zip(seeds(arm, [2.3, 2.4, 2.5], controls=controls, **own), TIMES, strict=True):
            common = {
                "spec": {"window": 128, "seed": 0},
                "subject": {"weights": each.name, "teacher": {"model": "T"} if controls else None, "tokenizer": "a"},
                "environment": {"device": "cpu", "processor": "P"},
            }
            made = dataclasses.replace(
                result("latency", {"read_ms": 2 * value if controls else value, "loss": value}), **common
            )
            if each.name == "kl-3":
                made = dataclasses.replace(made, **{key: {**common[key], **values} for key, values in of_last.items()})
            found.append(dataclasses.replace(each, evals={"latency": made}))
    return arms_of(study(*found))


def differences(arms):
    table = metric_difference_table("latency", arms)
    return cells(table, 0), {record["metric"]: record for record in table.records}


def test_metrics_are_subtracted_where_the_same_was_asked_and_a_control_needs_no_teacher(seeds):
    row, records = differences(latencies(seeds))
    assert "left out" not in row
    assert [records[key]["pairs"] for key in ("read_ms", "loss")] == [3, 3]
    assert records["read_ms"]["difference"] == pytest.approx(15.5 / 3)


@pytest.mark.parametrize(
    ("of_last", "path"),
    [({"spec": {"window": 256}}, "spec.window"), ({"subject": {"tokenizer": "b"}}, "tokenizer")],
)
def test_results_of_another_question_are_left_out_of_differences(seeds, of_last, path):
    row, records = differences(latencies(seeds, **of_last))
    assert row["left out"] == f"1 pair left out: they differ in {path}"
    assert (row["n"], records["loss"]["pairs"]) == ("2", 2)
    assert records["read_ms"]["difference"] == pytest.approx(4.5)


@pytest.mark.parametrize("key", ["device", "processor"])
def test_times_of_another_machine_are_left_out_of_differences_and_other_metrics_are_not(seeds, key):
    row, records = differences(latencies(seeds, environment={key: "other"}))
    assert row["left out"] == "times of 1 pair: other machines"
    assert (records["read_ms"]["pairs"], records["loss"]["pairs"]) == (2, 3)
    assert records["read_ms"]["difference"] == pytest.approx(4.5)
    assert differences(latencies(seeds, environment={"python": "other"}))[1]["read_ms"]["pairs"] == 3


def test_a_difference_of_metrics_says_what_both_sides_have_spent(seeds):
    end = Costs(step=15, tokens=1500, seconds=20.0, student_flops=1.25e12)
    assert differences(latencies(seeds, end=end))[0]["costs"] == "unequal: 1.50× tokens; 2.00× training seconds; 1.25× FLOPs"
    end = Costs(step=15, tokens=1500, seconds=10.0, student_flops=1.25e12)
    assert differences(latencies(seeds, end=end))[0]["costs"] == "equal training seconds"


def test_seeds_that_were_asked_otherwise_are_not_averaged(seeds):
    table = metric_table("latency", latencies(seeds, spec={"window": 256}), {})
    assert [row[:2] for row in table.rows] == [("ce", "3"), ("kl (spec.window=128)", "2"), ("kl (spec.window=256)", "1")]
    assert cells(table, 2)["read ms"] == "13.00"
    assert table.marks == {0: "control"}


def test_tables_of_an_evaluations_own_are_shown_for_one_run_and_kept_for_all(measured):
    (table,) = detail_tables("calibration", measured, {})
    assert table.headers == ("arm", "tokens", "score")
    assert table.rows == (
        ("ce", "128", "0.1000"),
        ("ce", "2,048", "none"),
        ("kl", "128", "0.05000"),
        ("kl", "2,048", "none"),
    )
    assert len(table.records) == 12


def test_details_that_are_no_tables_are_passed_over(make_run):
    for tables in (None, [], {"a": 1}, {"a": {"headers": ["x"]}}, {"a": {"headers": ["x"], "rows": [[1, 2], "no"]}}):
        evals = {"latency": result("latency", {}, details={"tables": tables})}
        assert detail_tables("latency", arms_of(study(cell("ce", make_run(), evals=evals))), {}) == []
