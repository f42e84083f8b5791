"""The bootstrap against the delta method and against an exhaustive enumeration; interpolation against hand numbers."""

import itertools

import numpy as np
import pytest

from limbeck.report.statistics import interpolate, moving_mean, paired_difference, ratio_estimate


def test_interval_agrees_with_the_delta_method_on_many_documents():
    rng = np.random.default_rng(7)
    sizes = rng.uniform(500, 2500, 2000)
    bits = sizes * rng.normal(2.4, 0.3, 2000)
    estimate = ratio_estimate(bits, sizes)
    residuals = bits - sizes * bits.sum() / sizes.sum()
    error = np.sqrt((residuals**2).sum()) / sizes.sum()
    assert estimate.value == pytest.approx(bits.sum() / sizes.sum(), rel=1e-12)
    # A quantile of 10,000 resamples wanders by about 0.03 standard errors.
    assert estimate.low == pytest.approx(estimate.value - 1.96 * error, abs=0.12 * error)
    assert estimate.high == pytest.approx(estimate.value + 1.96 * error, abs=0.12 * error)


def test_interval_agrees_with_every_possible_resample_of_four_documents():
    sizes, bits = np.array([1.0, 2.0, 4.0, 3.0]), np.array([2.0, 5.0, 7.0, 9.0])
    every = [bits[list(drawn)].sum() / sizes[list(drawn)].sum() for drawn in itertools.product(range(4), repeat=4)]
    low, high = np.quantile(every, [0.025, 0.975])
    estimate = ratio_estimate(bits, sizes)
    steps = np.unique(every)
    assert abs(np.searchsorted(steps, estimate.low) - np.searchsorted(steps, low)) <= 1
    assert abs(np.searchsorted(steps, estimate.high) - np.searchsorted(steps, high)) <= 1


def test_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        sizes = rng.uniform(500, 1500, 60)
        estimate = ratio_estimate(sizes * 2.0 + rng.normal(0, 300, 60), sizes)
        hits += estimate.low <= 2.0 <= estimate.high
    assert 0.89 <= hits / 200 <= 0.99  # 0.95 within four standard errors of 200 draws


def test_pairing_removes_what_makes_a_document_hard():
    rng = np.random.default_rng(1)
    sizes = rng.integers(500, 2000, 40).astype(float)
    control = np.stack([sizes, sizes * rng.normal(2.4, 0.5, 40)], axis=1)
    arm = np.stack([sizes, control[:, 1] - 0.1 * sizes], axis=1)
    difference = paired_difference(arm, control)
    assert (difference.value, difference.low, difference.high) == pytest.approx((-0.1, -0.1, -0.1), abs=1e-12)
    assert ratio_estimate(control[:, 1], sizes).half_width > 0.05


def test_the_order_of_arms_turns_the_sign_and_nothing_else():
    rng = np.random.default_rng(2)
    sizes = rng.uniform(500, 2000, 25)
    one, two = (np.stack([sizes, sizes * rng.normal(2, 0.2, 25)], axis=1) for _ in range(2))
    forth, back = paired_difference(one, two), paired_difference(two, one)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low), rel=1e-9)


def test_one_document_has_no_interval():
    estimate = ratio_estimate(np.array([5.0]), np.array([2.0]))
    assert (estimate.value, estimate.low, estimate.high) == (2.5, None, None)


@pytest.mark.parametrize(("at", "expected"), [(10.0, 3.0), (15.0, 2.75), (20.0, 2.5), (35.0, 2.125), (9.9, None), (40.1, None)])
def test_interpolates_inside_and_never_beyond(at, expected):
    costs, values = np.array([10.0, 20.0, 40.0]), np.array([3.0, 2.5, 2.0])
    assert interpolate(costs, values, at=at) == expected


def test_moving_mean_of_the_last_three():
    np.testing.assert_allclose(moving_mean(np.array([3.0, 5.0, 1.0, 6.0, 2.0]), window=3), [3, 4, 3, 4, 3], rtol=1e-12)
