"""Calibration error by hand and by another counting."""

import numpy as np
import pytest

from limbeck.evals.calibration import calibration_error


def by_hand(confidence: list[float], outcome: list[float], bins: int) -> float:
    """Guo et al. (arXiv 1706.04599), eq. 3, as written."""
    total = 0.0
    for m in range(1, bins + 1):
        members = [i for i, c in enumerate(confidence) if (m - 1) / bins < c <= m / bins or (m == 1 and c == 0)]
        if members:
            gap = np.mean([outcome[i] for i in members]) - np.mean([confidence[i] for i in members])
            total += len(members) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 5, 21])
def test_it_is_the_papers_sum(bins: int) -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(400)
    for outcome in (generator.random(400) < confidence**2, generator.random(400)):
        expected = by_hand(confidence.tolist(), outcome.astype(float).tolist(), bins)
        assert calibration_error(confidence, outcome, bins=bins) == pytest.approx(expected, rel=1e-12)


def test_there_are_21_bins_unless_others_are_asked_for() -> None:
    right = np.array([1.0, 0.0])  # 20/21 = 0.9524 lies between 19/20 and 21/22
    assert calibration_error(np.array([0.953, 0.99]), right) == pytest.approx(abs(0.5 - 0.9715))
    assert calibration_error(np.array([0.951, 0.99]), right) == pytest.approx((0.049 + 0.99) / 2)
    assert calibration_error(np.array([0.951, 0.99]), right, bins=20) == pytest.approx(abs(0.5 - 0.9705))


def test_a_model_that_is_right_as_often_as_it_says_has_none() -> None:
    confidence = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0])
    assert calibration_error(confidence, right) == 0.0
    assert calibration_error(confidence, ~right) == pytest.approx(0.5)


def test_errors_in_a_bin_cancel_and_over_bins_they_do_not() -> None:
    confidence = np.array([0.5, 0.5, 0.9, 0.1])
    assert calibration_error(confidence, np.array([1.0, 0.0, 0.9, 0.1])) == 0.0
    assert calibration_error(confidence, np.array([0.5, 0.5, 0.4, 0.6])) == pytest.approx(0.25)


def test_a_confidence_on_an_edge_is_in_the_bin_below() -> None:
    assert calibration_error(np.array([0.5, 0.4]), np.array([0.4, 0.5]), bins=2) == 0.0
    assert calibration_error(np.array([0.5, 0.6]), np.array([0.6, 0.5]), bins=2) == pytest.approx(0.1)


def test_confidences_of_zero_and_one_have_a_bin() -> None:
    assert calibration_error(np.array([0.0, 1.0]), np.array([1.0, 1.0])) == 0.5
