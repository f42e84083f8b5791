"""Means and intervals over seeds against scipy and the standard library; comparisons say what their interval is over."""

import math
import statistics

import numpy as np
import pytest
from handmade import BITS, DOCUMENTS, cell, shifted, study
from scipy import stats

from limbeck.errors import LimbeckError
from limbeck.report.arms import Curve, arms_of, band
from limbeck.report.comparisons import comparisons
from limbeck.report.seeds import mean_estimate, spread
from limbeck.report.statistics import RESAMPLES
from limbeck.runs import Costs

VALUES = [2.31, 2.05, 2.44, 2.2]
OTHERS = [2.40, 2.12, 2.59, 2.31]


def test_the_interval_of_a_mean_is_students_t():
    found, known = mean_estimate(VALUES), stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(statistics.fmean(VALUES), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-10)
    assert spread(VALUES).sd == pytest.approx(statistics.stdev(VALUES), abs=1e-12)


def test_one_value_has_neither_spread_nor_interval_and_none_is_none():
    assert (mean_estimate([2.0]).low, mean_estimate([2.0]).high, spread([2.0]).sd) == (None, None, None)
    assert spread([]) is None


def test_curves_of_seeds_are_averaged_evaluation_by_evaluation():
    one, other = Curve(np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, 3.0])), Curve(np.array([3.0, 4.0]), np.array([6.0, 3.0]))
    found = band([one, other, Curve(np.zeros(0), np.zeros(0))])
    assert found.costs.tolist() == [2.0, 3.0]
    assert found.values.tolist() == [5.5, 3.5]
    assert (found.low.tolist(), found.high.tolist(), found.seeds) == ([5.0, 3.0], [6.0, 4.0], 2)


def compared(*cells, **values):
    return {(each.arm.name, each.basis): each for each in comparisons(arms_of(study(*cells, **values)))}


def test_differences_are_paired_by_seed(seeds):
    found = compared(*seeds("ce", OTHERS), *seeds("kl", VALUES, controls="ce", objective="forward_kl"))["kl", "tokens"]
    known = stats.ttest_rel(VALUES, OTHERS).confidence_interval(0.95)
    assert found.over == "seeds"
    assert (found.difference.low, found.difference.high) == pytest.approx((known.low, known.high), abs=1e-9)
    assert [seed for seed, _ in found.by_seed] == [1, 2, 3, 4]
    # Unpaired, the same numbers could not be told apart.
    assert stats.ttest_ind(VALUES, OTHERS).confidence_interval(0.95).high > 0 > found.difference.high
    assert found.outcome == "ahead"


def test_one_seed_falls_back_on_documents_and_says_so(make_run):
    ce, kl = make_run(), make_run(objective="forward_kl", documents=shifted(-0.2, wobble=0.1))
    found = compared(cell("ce", ce, seed=1), cell("kl", kl, seed=1, controls={"tokens": "ce-1"}))["kl", "tokens"]
    assert found.over == "documents"
    assert found.basis_of_interval == "1 seed; documents"
    worth = [(size, bits - other) for (size, bits), (_, other) in zip(shifted(-0.2, wobble=0.1), DOCUMENTS, strict=True)]
    assert found.difference.value == pytest.approx(sum(bits for _, bits in worth) / sum(size for size, _ in worth))
    # The normal approximation of a ratio's standard error (Cochran 1977, eq. 6.13); the bootstrap's of six is a little less.
    ratio, size = found.difference.value, statistics.fmean(each for each, _ in worth)
    residuals = [bits - ratio * each for each, bits in worth]
    error = math.sqrt(sum(each**2 for each in residuals) / 5 / 6) / size
    assert found.difference.half_width == pytest.approx(1.96 * error, rel=0.3)
    assert RESAMPLES == 10_000


def test_a_second_seed_changes_what_the_interval_is_over(seeds):
    cells = [*seeds("ce", OTHERS), *seeds("kl", VALUES, controls="ce", objective="forward_kl")]
    lost = [each for each in cells if each.name not in ("kl-2", "kl-3", "kl-4")]
    assert compared(*cells)["kl", "tokens"].basis_of_interval == "4 seeds"
    assert compared(*lost)["kl", "tokens"].basis_of_interval == "1 seed; documents"


def test_seeds_that_share_a_control_have_a_mean_and_no_interval(seeds):
    arm = seeds("kl", VALUES, objective="forward_kl", controls="ce")
    shared = [cell(each.arm, each.run, seed=each.seed, controls={"tokens": "ce-1"}) for each in arm]
    found = compared(*seeds("ce", [2.3]), *shared)["kl", "tokens"]
    assert (found.difference.low, found.over, found.outcome) == (None, "nothing", "unknown")
    assert found.difference.value == pytest.approx(statistics.fmean(VALUES) - 2.3)
    assert "share one control" in found.why


END = Costs(step=10, tokens=1000, seconds=10.0, student_flops=1e12)


@pytest.mark.parametrize(("seconds", "told"), [(10.19, True), (9.81, True), (10.3, False), (9.7, False)])
def test_costs_that_differ_by_more_than_two_percent_are_not_equal(seeds, seconds, told):
    end = Costs(step=10, tokens=1000, seconds=seconds, student_flops=1e12)
    found = compared(*seeds("ce", OTHERS), *seeds("kl", VALUES, controls="ce", objective="forward_kl", end=end))
    assert (found["kl", "seconds"].difference is not None) == told
    assert found["kl", "tokens"].difference is not None
    if not told:
        assert found["kl", "seconds"].why == f"unequal, {seconds / 10:.2f}×"
        assert found["kl", "seconds"].outcome == "unknown"


@pytest.mark.parametrize(("share", "told"), [(1.0, False), (0.5, True), (0.0, False)])
def test_flops_count_the_teachers_share(seeds, share, told):
    control = Costs(step=10, tokens=1000, seconds=10.0, student_flops=2e12)
    end = Costs(step=10, tokens=1000, seconds=10.0, student_flops=1e12, teacher_flops=2e12)
    cells = [*seeds("ce", OTHERS, end=control), *seeds("kl", VALUES, controls="ce", objective="forward_kl", end=end)]
    assert (compared(*cells, teacher_share=share)["kl", "flops"].difference is not None) == told


def test_a_study_may_hold_more_for_equal(seeds):
    end = Costs(step=10, tokens=1000, seconds=10.4, student_flops=1e12)
    cells = [*seeds("ce", OTHERS), *seeds("kl", VALUES, controls="ce", objective="forward_kl", end=end)]
    assert compared(*cells)["kl", "seconds"].difference is None
    assert compared(*cells, tolerance=0.05)["kl", "seconds"].difference is not None


def test_what_did_not_finish_is_named_and_the_others_count(seeds, make_run):
    cells = seeds("ce", OTHERS)
    arm = seeds("kl", VALUES, controls="ce", objective="forward_kl")
    lost = make_run(objective="forward_kl", bits_per_byte=float("nan"))
    arm[0] = cell("kl", lost, seed=1, controls={"tokens": "ce-1"})
    found = compared(*cells, *arm)["kl", "tokens"]
    assert [seed for seed, _ in found.by_seed] == [2, 3, 4]
    alone = cell("left", None, seed=1, status="left out", controls={"tokens": "ce-1"})
    diverged = cell("bad", lost, seed=1, controls={"tokens": "ce-1"})
    waiting = cell("early", cells[0].run, seed=2, controls={"tokens": "slow-1"})
    slow = cell("slow", make_run(finished=False), seed=1, status="running")
    said = compared(*cells, alone, diverged, waiting, slow)
    whys = [said[arm, "tokens"].why for arm in ("left", "bad", "early")]
    assert whys == ["left out", "diverged", "“slow-1” is running"]


def test_other_documents_of_the_same_total_size_do_not_compare(make_run):
    other = cell("kl", make_run(objective="forward_kl", documents=DOCUMENTS[::-1]), controls={"tokens": "ce"})
    found = compared(cell("ce", make_run()), other)["kl", "tokens"]
    assert (found.difference, found.why) == (None, "measured on other documents")


def test_arms_that_a_study_compares_are_paired_by_seed_on_every_basis_that_is_equal(seeds):
    slow = Costs(step=10, tokens=1000, seconds=15.0, student_flops=1e12)
    found = compared(*seeds("base", OTHERS), *seeds("wide", VALUES[:3], compared_with="base", end=slow))
    assert [seed for seed, _ in found["wide", "tokens"].by_seed] == [1, 2, 3]
    assert found["wide", "seconds"].why == "unequal, 1.50×"
    assert found["wide", "flops"].outcome == found["wide", "tokens"].outcome


def test_no_seed_in_common(seeds, make_run):
    found = compared(*seeds("base", OTHERS), cell("wide", make_run(), seed=9, compared_with="base"))
    assert found["wide", "tokens"].why == "no seed in common"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controls": {"tokens": "nobody"}}, "control=nobody is none of the runs"),
        ({"controls": {"tokens": "taught"}}, "control=taught learns from a teacher itself"),
        ({"compared_with": "nobody"}, "compared_with=nobody is none of the arms"),
        ({"name": "taught"}, r"cells share a name \(taught\)"),
    ],
)
def test_what_cannot_be_held_against_is_one_clear_error(make_run, changes, message):
    taught = cell("taught", make_run(objective="forward_kl"))
    with pytest.raises(LimbeckError, match=message):
        arms_of(study(taught, cell("other", make_run(), **changes)))


def test_bits_of_seeds(seeds):
    arm = arms_of(study(*seeds("ce", VALUES))).named("ce")
    assert (arm.bits.mean, arm.bits.sd, arm.bits.n) == pytest.approx((statistics.fmean(VALUES), statistics.stdev(VALUES), 4))
    assert arm.documents_estimate is None
    assert pytest.approx(21500 / 9200) == BITS
