"""Stages, milestones and experts in the report of handmade runs."""

from pathlib import Path
from typing import Any

import pytest
from handmade import cell, study

from limbeck.report.arms import arms_of
from limbeck.report.experts import course_table, expert_table
from limbeck.report.stages import milestone_table, stage_ends, stage_table, trace_table
from limbeck.report.study_page import write_study_report
from limbeck.runs import Costs, Run, RunWriter, open_run
from limbeck.spec.load import load_recipe

SHARES = [
    {"name": "low <b>", "share": 0.25},
    {"name": "long", "share": 0.75, "changes": {"data.sequence_length": 1024, "objective": {"kind": "ce"}}},
]


def make(folder: Path, *, experts: bool = True) -> Run:
    """Two stages of 250 and 750 tokens, measured in the middle and at the end of each; two layers with experts."""
    stages = [{**SHARES[0], "name": "low"}, SHARES[1]]
    recipe = load_recipe("quickstart", {"curriculum": stages, "budget.kind": "tokens", "budget.amount": 1000, "name": "arm"})
    writer = RunWriter(folder, recipe=recipe, device="cpu")
    bits = {100: 4.0, 250: 3.0, 500: 2.5, 1000: 2.25}
    for step, (tokens, value) in enumerate(bits.items()):
        name, length = ("low", 512) if tokens <= 250 else ("long", 1024)
        writer.stage = {"stage": name, "sequence_length": length}
        traces = {"low": {"chats": 7, "mean": 10.0, "p50": 9, "p90": 20, "max": 30}}
        writer.keep_stage(name, padding_share=0.125, documents_left_out=3, chats=[{"traces": traces}])
        costs = Costs(step=step + 1, tokens=tokens, seconds=tokens / 100, student_flops=1e9 * tokens)
        writer.record("train", costs, loss_nats=value + 1)
        writer.record("eval", costs, bits_per_byte=value, kl_to_teacher_nats=None)
        if experts:
            numbers = {"load": 1.5, "entropy": 0.9, "dead": 0.0, "drift": None, "drift_from_first": None}
            if step:
                numbers |= {"drift": 0.1 * step, "drift_from_first": 0.2 * step}
            writer.record_layers("experts", costs, [numbers, {**numbers, "load": 2.5}], **{**numbers, "load": 2.0})
    writer.record("milestone", Costs(step=3, tokens=500, seconds=5.0), amount=500, bits_per_byte=2.5, sequence_length=1024)
    writer.finish(Costs(step=4, tokens=1000, seconds=10.0, student_flops=1e12), arm="arm", bits_per_byte=2.25, teacher=None)
    return open_run(folder)


def test_each_stage_has_a_row(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    table = stage_table(arms_of(study(cell("arm", run))))
    assert table is not None
    by_stage = {record["stage"]: record for record in table.records}
    assert [by_stage[name]["tokens"] for name in ("low", "long")] == [250, 750]
    assert [by_stage[name]["bits_per_byte"] for name in ("low", "long")] == [3.0, 2.25]
    assert [by_stage[name]["sequence_length"] for name in ("low", "long")] == [512, 1024]
    assert [by_stage[name]["signal"] for name in ("low", "long")] == ["sampled, a store", "none"]
    assert table.rows[0][7:9] == ("12.5 %", "3")
    assert stage_ends(run, "tokens") == [("low", 250.0)]
    assert stage_ends(run, "seconds") == [("low", 2.5)]


def test_milestones_traces_and_experts_have_tables(tmp_path: Path) -> None:
    arms = arms_of(study(cell("arm", make(tmp_path / "run"))))
    milestones, traces, experts, course = (
        make_table(arms) for make_table in (milestone_table, trace_table, expert_table, course_table)
    )
    assert milestones is not None and traces is not None and experts is not None and course is not None
    assert milestones.records == (
        {"run": "arm", "amount": 500, "step": 3, "tokens": 500, "stage": "long", "sequence_length": 1024, "bits_per_byte": 2.5},
    )
    assert [record["max"] for record in traces.records] == [30, 30]
    assert [(record["layer"], record["load"], record["drift"]) for record in experts.records] == [
        (1, 1.5, pytest.approx(0.3)),
        (2, 2.5, pytest.approx(0.3)),
    ]
    assert [record["drift_from_first"] for record in course.records] == [None, 0.2, 0.4, pytest.approx(0.6)]


def test_the_page_has_them_and_a_plain_run_has_none(tmp_path: Path) -> None:
    page = write_study_report(study(cell("arm", make(tmp_path / "run"))), folder=tmp_path / "report").read_text(
        encoding="utf-8"
    )
    assert "Stages" in page and "Milestones" in page and "Experts" in page
    figures: list[Any] = sorted(path.name for path in (tmp_path / "report" / "figures").iterdir())
    assert "experts.svg" in figures
    recipe = load_recipe("quickstart", {"name": "plain"})
    RunWriter(tmp_path / "plain", recipe=recipe, device="cpu").finish(Costs(step=1, tokens=10), arm="plain", bits_per_byte=2.0)
    arms = arms_of(study(cell("plain", open_run(tmp_path / "plain"))))
    assert (stage_table(arms), milestone_table(arms), trace_table(arms), expert_table(arms), course_table(arms)) == (None,) * 5
