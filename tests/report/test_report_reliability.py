"""Reliability diagrams, drawn from JSON alone."""

import json
from typing import Any

import pytest
from matplotlib.figure import Figure

from limbeck.drawing import render_both
from limbeck.report.reliability import reliability_diagrams


def details(error: float) -> dict[str, Any]:
    """What a calibration with four bins leaves, the second of which is empty."""
    diagram = {"error": error, "count": [60, 0, 30, 10], "confidence": [0.1, None, 0.6, 0.9], "outcome": [0.2, None, 0.5, 0.9]}
    return json.loads(json.dumps({"reliability": {"data": diagram}, "teacher": None}))


@pytest.mark.parametrize("models", [1, 3, 5])
def test_a_panel_for_each_model(models: int) -> None:
    drawn = reliability_diagrams({f"model {index}": details(index / 100) for index in range(models)})
    assert drawn is not None
    draw, size = drawn
    figure = Figure(figsize=size)
    draw(figure)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    diagrams = [axes for axes in shown if axes.get_title(loc="left") or axes.get_title()]
    histograms = [axes for axes in shown if axes not in diagrams]
    assert len(diagrams) == len(histograms) == models
    for index, axes in enumerate(diagrams):
        assert (axes.get_title(loc="left") + axes.get_title()) == f"model {index}\nerror {index / 100:.4f}"
        diagonal, *gaps, curve = [line.get_xydata().tolist() for line in axes.lines]
        assert diagonal == [[0, 0], [1, 1]]
        assert curve == [[0.1, 0.2], [0.6, 0.5], [0.9, 0.9]]
        assert gaps == [[[0.1, 0.1], [0.1, 0.2]], [[0.6, 0.6], [0.6, 0.5]], [[0.9, 0.9], [0.9, 0.9]]]
    for axes in histograms:
        bars = [(bar.get_x(), bar.get_height()) for bar in axes.patches]
        assert bars == [pytest.approx(each) for each in ((0, 0.6), (0.25, 0), (0.5, 0.3), (0.75, 0.1))]
    assert render_both(draw, size=size)[0].startswith(b"\x89PNG")


def test_models_without_the_comparison_are_left_out() -> None:
    models = {"alone": details(0.1), "taught": details(0.2)}
    assert reliability_diagrams(models, outcome="teacher_top1") is None
    models["taught"]["reliability"]["teacher_top1"] = models["taught"]["reliability"]["data"]
    drawn = reliability_diagrams(models, outcome="teacher_top1")
    assert drawn is not None
    figure = Figure(figsize=drawn[1])
    drawn[0](figure)
    assert [axes.get_title(loc="left") + axes.get_title() for axes in figure.axes[:1]] == ["taught\nerror 0.2000"]
