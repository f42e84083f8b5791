"""The table of rollouts, from records made by hand."""

from dataclasses import replace
from typing import Any

import pytest
from handmade import cell, study

from limbeck.report.arms import arms_of
from limbeck.report.rollouts import rollout_table
from limbeck.report.study_page import study_blocks


def with_rollouts(run: Any) -> Any:
    """Twenty steps: the share that stops falls from 1 to 0.05, and every step takes 1, 2 and 4 seconds."""
    steps = [
        {
            "event": "train",
            "step": step,
            "stopped_share": 1.05 - step / 20,
            "rollout_tokens": 10.0 * step,
            "generate_seconds": 1.0,
            "teach_seconds": 2.0,
            "train_seconds": 4.0,
        }
        for step in range(1, 21)
    ]
    return replace(run, records=(*run.records, *steps))


def test_what_was_drawn_early_and_late(make_run: Any) -> None:
    written = cell("written", with_rollouts(make_run()))
    table = rollout_table(arms_of(study(cell("read", make_run()), written)))
    assert table is not None
    assert table.headers == (
        "run",
        "steps",
        "tokens a rollout",
        "stopped",
        "generate",
        "teach",
        "train, seconds a step",
    )
    (row,) = table.rows
    # A tenth of twenty steps is two of them: the means of 10 and 20, of 190 and 200, of 1 and 0.95, of 0.1 and 0.05.
    assert row[1:] == ("20", "15.0 → 195.0", "0.98 → 0.08", "1.00", "2.00", "4.00")
    assert table.records[0]["stopped_share_late"] == pytest.approx(0.075)


def test_runs_that_read_texts_alone_have_no_such_table(make_run: Any) -> None:
    view = study(cell("read", make_run()))
    assert rollout_table(arms_of(view)) is None
    assert not any(getattr(block, "name", "") == "rollouts" for block in study_blocks(view))
