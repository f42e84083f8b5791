"""The numbers behind the figures of the laws against the paper's formulas and anchors; the figures as files and as axes."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from limbeck.errors import SpecError
from limbeck.plan.allocate import BEST_CASE, BOTH, INFERENCE, PRETRAINING, SCENARIOS
from limbeck.plan.compare import efficiency as exact_efficiency
from limbeck.plan.figures import contours, scenarios, slices
from limbeck.plan.figures.all import NUMBERS, charts, draw_all
from limbeck.plan.figures.efficiency import multiples
from limbeck.plan.figures.marks import Chart, Curve, FittedRange, Panel, fitted_note, numbers, within
from limbeck.plan.laws import PUBLISHED, Laws

FIGURES = [
    "isoflop-students",
    "isoflop-teachers",
    "teacher-u-shape",
    "optimal-teacher",
    "distil-or-not-students",
    "distil-or-not-teacher-tokens",
    "scenarios-loss",
    "scenarios-tokens",
    "scenarios-teacher-size",
    "scenarios-allocation",
    "efficiency",
]


def supervised(n, d):
    """Eq. 1 with Table 6, written out."""
    return 1.220 + (3355 / n**0.408 + 18186 / d**0.431) ** 0.452


def distilled(n, d, teacher):
    """Eq. 8 with Table 6, written out; safe where the bracket's power does not overflow."""
    bracket = (1 + (teacher / (supervised(n, d) * 1.315)) ** (1 / 0.090)) ** (-522.6 * 0.090)
    return teacher + teacher**-2.549 * bracket * (2243 / n**0.321 + 24181 / d**0.637) ** 0.764


def forward(n):
    """F(N) at a context of 4,096 and a vocabulary of 32,768: the numeric form of eqs. 60-69."""
    return 2 * n + 310.12 * n ** (2 / 3) + 144263 * n ** (1 / 3)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Chart]:
    return {chart.name: chart for chart in charts(PUBLISHED, per_decade=2)}


@pytest.fixture(scope="module")
def swept() -> scenarios.Sweep:
    return scenarios.sweep(1e9, laws=PUBLISHED, per_decade=10)


def test_a_students_slice_spends_its_budget_on_it() -> None:
    params = np.geomspace(2e8, 8e9, 7)
    one = slices.student_slice(PUBLISHED, flops=1e21, teacher_loss=2.25, params=params)
    tokens = 1e21 / (3 * forward(params))
    np.testing.assert_allclose(one.tokens, tokens, rtol=1e-5)
    np.testing.assert_allclose(one.distilled, distilled(params, tokens, 2.25), rtol=1e-7)
    np.testing.assert_allclose(one.supervised, supervised(params, tokens), rtol=1e-7)


def test_a_teachers_slice_spends_its_budget_on_the_teacher() -> None:
    params = np.geomspace(2e8, 2e10, 9)
    one = slices.teacher_slice(PUBLISHED, student=198e6, tokens=4e9, flops=1e21, params=params)
    losses = supervised(params, 1e21 / (3 * forward(params)))
    np.testing.assert_allclose(one.distilled, distilled(198e6, 4e9, losses), rtol=1e-6)
    np.testing.assert_allclose(one.supervised, supervised(198e6, 4e9), rtol=1e-9)
    assert 0 < np.argmin(one.distilled) < len(params) - 1, "a U in the teacher's size"


ANCHORS = [
    (198e6, 20, 1.876, 2.5340, 2.7894),
    (198e6, 1280, 2.227, 2.4340, 2.4580),
    (1.82e9, 320, 1.908, 2.0669, 2.0786),
    (7.75e9, 80, 1.726, 1.9003, 1.9240),
]


@pytest.mark.parametrize(("student", "ratio", "teacher", "reached", "alone"), ANCHORS)
def test_the_bottom_of_the_u_is_where_the_paper_has_it(student, ratio, teacher, reached, alone) -> None:
    losses = np.linspace(1.7, 2.9, 1201)
    one = slices.teacher_loss_slice(PUBLISHED, student=student, tokens=ratio * student, losses=losses)
    assert losses[np.argmin(one.distilled)] == pytest.approx(teacher, abs=2e-3)
    assert one.distilled.min() == pytest.approx(reached, abs=1e-4)
    assert one.supervised[0] == pytest.approx(alone, abs=1e-4)
    (best,) = slices.best_teachers(PUBLISHED, student=student, tokens=np.array([ratio * student]))
    assert best.loss_nats == pytest.approx(teacher, abs=1e-3)


def test_the_u_shapes_that_are_drawn_have_their_bottoms_there(drawn) -> None:
    curves = {
        (panel.title, curve.name): curve for row in drawn["teacher-u-shape"].rows for panel in row for curve in panel.curves
    }
    for title, name, teacher in [
        ("student 198M", "20 tokens/parameter", 1.876),
        ("student 198M", "1280 tokens/parameter", 2.227),
        ("student 1.82B", "320 tokens/parameter", 1.908),
        ("80 tokens/parameter", "student 7.75B", 1.726),
    ]:
        curve = curves[title, name]
        assert curve.x[np.argmin(curve.y)] == pytest.approx(teacher, abs=6e-3)


def test_a_map_is_negative_where_the_teacher_helps() -> None:
    # E.4: at 20 tokens a parameter, the 1.82B student gains under teachers below about 2.2 nats, the 198M one up to about 2.75
    for student, crossing in ((1.82e9, 2.2), (198e6, 2.75)):
        below, above = contours.gain(
            PUBLISHED, params=student, tokens=20 * student, teacher_loss=[crossing - 0.05, crossing + 0.1]
        )
        assert below < 0 < above
    assert contours.gain(PUBLISHED, params=1e9, tokens=1e11, teacher_loss=2.1) == pytest.approx(
        distilled(1e9, 1e11, 2.1) - supervised(1e9, 1e11), abs=1e-9
    )


def test_the_best_gain_is_that_of_the_best_teacher() -> None:
    params, tokens = np.array([row[0] for row in ANCHORS]), np.array([row[0] * row[1] for row in ANCHORS])
    expected = [reached - alone for *_, reached, alone in ANCHORS]
    np.testing.assert_allclose(contours.best_gain(PUBLISHED, params=params, tokens=tokens), expected, atol=2.5e-4)


def test_maps_put_x_along_columns(drawn) -> None:
    panel = drawn["distil-or-not-teacher-tokens"].rows[0][1]
    column, row = 50, 20
    teacher = supervised(3e9, panel.columns[column])
    expected = distilled(1e9, panel.rows[row], teacher) - supervised(1e9, panel.rows[row])
    assert panel.values_YX[row, column] == pytest.approx(expected, abs=1e-9)
    panel = drawn["distil-or-not-students"].rows[0][1]
    teacher = supervised(1.82e9, 20 * 1.82e9)
    params, tokens = panel.rows[row], panel.columns[column]
    assert panel.values_YX[row, column] == pytest.approx(
        distilled(params, tokens, teacher) - supervised(params, tokens), abs=1e-9
    )


TABLE = {1e21: (2.2215, 2.1925, 2.2085, 2.2810, 2.2979), 1e22: (2.1348, 2.1310, 2.1395, 2.1479, 2.1655)}


@pytest.mark.parametrize("flops", TABLE)
def test_a_sweep_passes_through_the_scenarios_anchors(swept, flops) -> None:
    values = [swept.of_alone(lambda one: one.loss_nats)]
    values += [swept.of(scenario, lambda one: one.loss_nats) for scenario in (BEST_CASE, INFERENCE, PRETRAINING, BOTH)]
    for curve, expected in zip(values, TABLE[flops], strict=True):
        assert np.interp(np.log(flops), np.log(swept.flops), curve) == pytest.approx(expected, abs=7e-4)


def test_shares_add_up_to_one_and_follow_table_3(swept) -> None:
    chart = scenarios.allocation(PUBLISHED, [scenarios.sweep(300e6, laws=PUBLISHED, per_decade=5)])
    both = chart.rows[2][0]
    for panel in (row[0] for row in chart.rows):
        np.testing.assert_allclose(sum(panel.shares.values()), 1.0, rtol=1e-9)
    at_least = [np.interp(np.log(1e20), np.log(both.flops), share) for share in both.shares.values()]
    assert at_least == pytest.approx([0.30, 0.16, 0.55], abs=0.02)  # 300M at 1e20: student, logits, teacher


def test_multiples_are_those_of_the_exact_search(swept) -> None:
    found = {scenario.name: multiples(swept, scenario, laws=PUBLISHED, targets=5) for scenario in SCENARIOS}
    exact = exact_efficiency(swept.student, loss_nats=float(found[BOTH.name].loss[2]))
    for name, curve in found.items():
        assert (curve.compute[2], curve.tokens[2]) == pytest.approx(exact.ratios(name), rel=0.01)


def test_multiples_are_none_where_the_sweep_does_not_start_above_the_loss(swept) -> None:
    best = multiples(swept, BEST_CASE, laws=PUBLISHED)
    reached = np.flatnonzero(np.isfinite(best.compute))
    first = reached[0]
    assert first > 0 and np.array_equal(reached, np.arange(first, reached[-1] + 1))
    assert best.loss[first] <= swept.scenarios[BEST_CASE.name][0].loss_nats < best.loss[first - 1]


def test_within_knows_the_fitted_range_and_what_is_not_known() -> None:
    tokens = np.array([3e9, 198e6 * 20, 1e11, 512e9, 600e9])
    assert within(PUBLISHED.fitted, params=198e6, tokens=tokens).tolist() == [False, True, True, True, False]
    losses = np.array([1.89, 1.9, 2.5, 2.9, 2.91])
    assert within(PUBLISHED.fitted, params=1e9, tokens=1e11, teacher_loss=losses).tolist() == [False, True, True, True, False]
    assert not within(PUBLISHED.fitted, params=1e10, tokens=1e11)
    assert within(FittedRange(), params=1.0, tokens=tokens, teacher_loss=9.0).all()
    assert fitted_note(FittedRange()) == ""
    assert "143M–7.75B" in fitted_note(PUBLISHED.fitted)


def test_numbers_are_json_and_breaks_are_null() -> None:
    assert numbers([1 / 3, np.nan, 1e20]) == [0.333333, None, 1e20]
    assert numbers([[1.0], [np.inf]]) == [[1.0], [None]]


def test_only_a_bottom_within_a_curve_is_marked() -> None:
    x = np.arange(1.0, 6.0)
    for y, marked in (([3, 2, 1, 2, 3], [3.0]), ([5, 4, 3, 2, 1], [])):
        axes = Figure().add_subplot()
        Curve("", x, np.array(y, dtype=float), "black", bottom=True).draw(axes)
        assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] == marked


def test_every_axis_is_labelled_and_every_panel_filled(drawn) -> None:
    assert list(drawn) == FIGURES
    for chart in drawn.values():
        figure = Figure(figsize=chart.inches, layout="constrained")
        chart.draw(figure)
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        rows, columns = len(chart.rows), len(chart.rows[0])
        assert len(panels) == rows * columns
        for index, axes in enumerate(panels):
            assert axes.has_data()
            panel = chart.rows[index // columns][index % columns]
            row, column = divmod(index, columns)
            assert axes.get_ylabel() == panel.y.label or (column and chart.rows[row][column - 1].y.label == panel.y.label)
            assert axes.get_xlabel() == panel.x.label or (
                row < rows - 1 and chart.rows[row + 1][column].x.label == panel.x.label
            )
        assert panels[0].get_ylabel() and panels[-columns].get_xlabel()
        assert len(figure.legends) == 1 and len(figure.legends[0].get_texts()) >= 2


def test_scenarios_keep_their_colours(drawn) -> None:
    colours: dict[str, set[str]] = {}
    for name in ("scenarios-loss", "scenarios-tokens", "scenarios-teacher-size", "efficiency"):
        for row in drawn[name].rows:
            for panel in row:
                assert isinstance(panel, Panel)
                for curve in panel.curves:
                    colours.setdefault(curve.name, set()).add(curve.colour)
    del colours[""]
    assert all(len(used) == 1 for used in colours.values())
    assert len(set.union(*colours.values())) == len(SCENARIOS) + 1
    assert colours["supervised"] == {"black"}


def test_budgets_grow_and_curves_start_at_two_tokens_a_parameter(swept) -> None:
    assert all(before < after for before, after in pairwise(swept.flops))
    assert swept.flops[0] == pytest.approx(2 * 1e9 * 3 * forward(1e9), rel=1e-4)
    shown = swept.shown()
    assert shown.flops[0] * (1 + 1e-9) >= 1e20 and shown.flops[-1] <= 1e26 * (1 + 1e-9)
    assert len(shown.alone) == len(shown.flops) == len(shown.scenarios[BOTH.name])


@pytest.mark.slow
def test_all_figures_are_files_with_sound_paths_and_numbers(tmp_path: Path) -> None:
    paths = draw_all(tmp_path / "figures")
    assert sorted(path.name for path in paths) == sorted([f"{n}.{e}" for n in FIGURES for e in ("svg", "png")] + [NUMBERS])
    for path in paths:
        if path.suffix == ".svg":
            root = ElementTree.fromstring(path.read_bytes())
            drawn_paths = [node.get("d", "") for node in root.iter("{http://www.w3.org/2000/svg}path")]
            assert len(drawn_paths) > 20 and not [d for d in drawn_paths if re.search(r"nan|inf", d, re.IGNORECASE)]
        elif path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "figures" / NUMBERS).read_text(encoding="utf-8"))
    assert written["law"] == PUBLISHED.name and list(written["figures"]) == FIGURES
    curve = written["figures"]["teacher-u-shape"]["panels"][0]["curves"][2]
    assert len(curve["x"]) == len(curve["y"]) == len(curve["fitted"])
    np.testing.assert_allclose(curve["y"], distilled(198e6, 20 * 198e6, np.array(curve["x"])), rtol=1e-5)


def test_without_a_law_of_distillation_there_is_nothing_to_draw(tmp_path: Path) -> None:
    alone: Laws = replace(PUBLISHED, distillation=None)
    with pytest.raises(SpecError, match="has no law of distillation"):
        draw_all(tmp_path / "figures", laws=alone)
    assert not (tmp_path / "figures").exists()
