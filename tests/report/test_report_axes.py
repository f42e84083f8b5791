"""Which value of an axis is best, by how much, and the shape: against hand-made numbers and scipy."""

import pytest
from handmade import BITS, cell, shifted, study
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from limbeck.report.answer import axis_sentence
from limbeck.report.arms import arms_of
from limbeck.report.axes import axes_of, axis_finding, shape_of, split
from limbeck.report.statistics import Estimate


def pairwise(means, reach):
    places = range(len(means))
    return {
        (i, j): Estimate(means[i] - means[j], means[i] - means[j] - reach, means[i] - means[j] + reach)
        for i in places
        for j in places
        if i != j
    }


@pytest.mark.parametrize(
    ("means", "reach", "in_order", "shape"),
    [
        ([2.0, 2.01, 2.02], 0.05, True, "flat"),
        ([2.3, 2.0, 2.2], 0.05, True, "U-shaped"),
        ([2.3, 2.0, 2.02], 0.05, True, "unclear"),
        ([2.3, 2.2, 2.1], 0.05, True, "falling"),
        ([2.3, 2.27, 2.24], 0.05, True, "falling"),
        ([2.0, 2.1, 2.2], 0.05, True, "rising"),
        ([2.0, 2.2, 2.1], 0.05, True, "one best"),
        ([2.3, 2.0, 2.2], 0.05, False, "one best"),
        ([2.3, 2.0, 2.02], 0.05, False, "unclear"),
        ([2.3, 2.0], 0.05, True, "one best"),
        ([2.2, 2.0, 2.1, 2.3], 0.05, True, "U-shaped"),
    ],
)
def test_shapes(means, reach, in_order, shape):
    assert shape_of(means, pairwise(means, reach), in_order=in_order) == shape


def test_without_intervals_there_is_no_shape():
    assert shape_of([2.0, 3.0], {(0, 1): Estimate(-1.0), (1, 0): Estimate(1.0)}, in_order=True) == "unknown"


@given(st.lists(st.floats(1, 3), min_size=2, max_size=6, unique=True), st.floats(0.01, 1), st.booleans())
def test_a_shape_is_the_same_from_behind(means, reach, in_order):
    mirror = {"falling": "rising", "rising": "falling"}
    one = shape_of(means, pairwise(means, reach), in_order=in_order)
    assert shape_of(means[::-1], pairwise(means[::-1], reach), in_order=in_order) == mirror.get(one, one)


def found_of(*cells):
    return {axis.title: axis_finding(axis) for axis in axes_of(arms_of(study(*cells)))}


LOW, MIDDLE, HIGH = [2.30, 2.33, 2.36], [2.10, 2.12, 2.17], [2.20, 2.24, 2.26]


def three(seeds, **values):
    rates = {0.03: HIGH, 0.001: LOW, 0.01: MIDDLE}
    return [each for rate, bits in rates.items() for each in seeds(f"lr{rate}", bits, settings={"lr": rate}, **values)]


def test_an_interior_best_with_worse_neighbours_is_u_shaped(seeds):
    finding = found_of(*three(seeds))["lr"]
    assert [value.value for value in finding.values] == [0.001, 0.01, 0.03]
    assert (finding.best, finding.second, finding.shape, finding.seeds) == (1, 2, "U-shaped", 3)
    known = stats.ttest_rel(HIGH, MIDDLE).confidence_interval(0.95)
    gap = finding.values[2].minus_best
    assert (gap.low, gap.high) == pytest.approx((known.low, known.high), abs=1e-9)
    sentence = axis_sentence(finding).replace("\xa0", " ")
    assert "lr (3 seeds): the fewest bits per byte, 2.1300 ± 0.0361, at 0.01" in sentence
    assert "U-shaped: both neighbours, 0.001 and 0.03, are worse by more than their interval." in sentence


def test_values_are_compared_within_a_setting_of_the_other_axes(seeds):
    # Wide is 0.3 better and has no run at lr=1: without pairing lr=1 would look 0.1 worse than it is.
    grid = {("narrow", 1): [2.3, 2.4], ("narrow", 2): [2.5, 2.6], ("wide", 2): [2.0, 2.1]}
    cells = [
        each for (width, lr), bits in grid.items() for each in seeds(f"{width}-{lr}", bits, settings={"lr": lr, "width": width})
    ]
    finding = found_of(*cells)["lr"]
    assert [value.bits.mean for value in finding.values] == pytest.approx([2.35, 2.55])
    assert finding.settings == 1


def test_differences_are_averaged_over_settings_before_seeds(seeds):
    grid = {("a", 1): [2.3, 2.5], ("a", 2): [2.4, 2.5], ("b", 1): [2.0, 2.1], ("b", 2): [2.3, 2.1]}
    cells = [each for (b, lr), bits in grid.items() for each in seeds(f"{b}{lr}", bits, settings={"lr": lr, "b": b})]
    finding = found_of(*cells)["lr"]
    known = stats.ttest_1samp([0.2, 0.0], 0).confidence_interval(0.95)
    gap = finding.values[1].minus_best
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.1, known.low, known.high), abs=1e-9)
    assert finding.settings == 2
    assert "averaged over 2 settings" in axis_sentence(finding)


def test_one_seed_is_judged_over_documents(make_run):
    runs = {lr: make_run(documents=shifted(amount, wobble=0.01 * lr)) for lr, amount in ((1, 0.0), (2, 0.2))}
    finding = found_of(*(cell(f"lr{lr}", run, settings={"lr": lr}) for lr, run in runs.items()))["lr"]
    assert (finding.over, finding.shape, finding.best) == ("documents", "one best", 0)
    assert finding.values[1].minus_best.value == pytest.approx(0.2, abs=0.01)
    assert "1 seed; intervals over documents" in axis_sentence(finding)


def test_values_without_a_finished_run_are_named_and_do_not_empty_the_rest(seeds, make_run):
    lost = cell("lr9", make_run(bits_per_byte=float("nan")), seed=1, settings={"lr": 9})
    finding = found_of(*three(seeds), lost)["lr"]
    assert finding.lost == (9,)
    assert len(finding.values) == 3
    assert "No run has finished at 9." in axis_sentence(finding)


def test_arms_of_different_bases_are_not_mixed(seeds):
    mixed = found_of(*three(seeds, base="kl"), *seeds("ce-1", [3.0] * 3, settings={"lr": 0.001}, base="ce"))
    assert set(mixed) == {"kl: lr"}
    assert mixed["kl: lr"].values[0].bits.mean == pytest.approx(sum(LOW) / 3)


def test_controls_that_cells_share_lie_on_no_axis(seeds):
    control = seeds("ce", [2.5] * 3)
    assert found_of(*control, *three(seeds, controls="ce", objective="forward_kl"))["lr"].settings == 1


def test_settings_apart_show_where_axes_interact(seeds):
    grid = {("a", 1): [2.0, 2.01], ("a", 2): [2.4, 2.42], ("b", 1): [2.5, 2.52], ("b", 2): [2.1, 2.13]}
    cells = [each for (b, lr), bits in grid.items() for each in seeds(f"{b}{lr}", bits, settings={"lr": lr, "b": b})]
    axis = next(each for each in axes_of(arms_of(study(*cells))) if each.axis == "lr")
    best = {part.base: axis_finding(part) for part in split(axis)}
    assert {base: each.values[each.best].value for base, each in best.items()} == {"b=a": 1, "b=b": 2}


def test_words_of_values_are_kept_in_their_order(seeds):
    cells = [each for kind in ("topk", [1, 2], True) for each in seeds(str(kind), [BITS, 2.3], settings={"kind": kind})]
    finding = found_of(*cells)["kind"]
    assert [value.value for value in finding.values] == ["topk", [1, 2], True]
    assert finding.shape == "flat"
