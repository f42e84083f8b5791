"""The figure of what is measured against the student's size."""

import dataclasses

import pytest
from handmade import result, study
from matplotlib.figure import Figure

from limbeck.report.arms import arms_of
from limbeck.report.by_size import draw_by_size


def sized(seeds, arm: str, base: str, parameters: int, rank: float, *, bits: float = 3.0):
    """One cell of an arm: a student of that many parameters that expects the end of a text at that rank."""
    [cell] = seeds(arm, [bits])
    assert cell.run is not None and cell.run.summary is not None
    run = dataclasses.replace(cell.run, summary={**cell.run.summary, "parameters": {"total": parameters}})
    health = result("generation", {"end_rank_median": rank, "loop_share": 0.5})
    return dataclasses.replace(cell, run=run, base=base, evals={"generation": health})


def drawn(monkeypatch, cells, **values):
    """Title and lines of every panel."""
    found = {}

    def render(draw, *, size):
        figure = Figure()
        draw(figure)
        found.update({axes.get_title(): [line.get_xydata().tolist() for line in axes.get_lines()] for axes in figure.axes})
        return b"", b""

    monkeypatch.setattr("limbeck.drawing.render_both", render)
    view = study(*cells, **values)
    return draw_by_size(arms_of(view), view.teachers), found


def test_a_line_for_every_base_from_small_to_large(seeds, monkeypatch):
    cells = [
        sized(seeds, "width 3", "width", 3_000_000, 2.0),
        sized(seeds, "width 1", "width", 1_000_000, 900.0, bits=4.0),
        sized(seeds, "depth 2", "depth", 2_000_000, 40.0),
    ]
    teachers = {"parent": {"generation": result("generation", {"end_rank_median": 1.0, "loop_share": 0.0})}}
    figure, panels = drawn(monkeypatch, cells, teachers=teachers)
    assert figure is not None and figure.name == "by-size"
    ranks = panels["rank of the stop token at texts’ ends"]
    assert ranks[:2] == [[[1.0, 900.0], [3.0, 2.0]], [[2.0, 40.0]]]
    assert [y for _, y in ranks[2]] == [1.0, 1.0]  # the teacher
    assert [y for line in panels["held-out bits per byte"] for _, y in line] == pytest.approx([4.0, 3.0, 3.0])


def test_two_sizes_or_no_evaluation_are_not_drawn(seeds, monkeypatch):
    cells = [sized(seeds, f"arm {size}", "", size, 2.0) for size in (1_000_000, 1_001_000, 2_000_000)]
    assert drawn(monkeypatch, cells)[0] is None
    bare = [dataclasses.replace(sized(seeds, f"arm {size}", "", size * 1_000_000, 2.0), evals={}) for size in (1, 2, 3)]
    assert drawn(monkeypatch, bare)[0] is None
