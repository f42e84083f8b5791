"""Orthogonalisation against singular value decompositions, published tables, and coefficients recomputed by Remez here."""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.optim.orthogonalise import (
    POLAR_EXPRESS,
    POLAR_EXPRESS_5,
    SAFETY,
    SAFETY_5,
    Orthogonaliser,
    orthogonalise,
)

METHODS: tuple[Orthogonaliser, ...] = ("newton_schulz", "polar_express")
GRID = torch.logspace(math.log10(0.003), 0, 20001, dtype=torch.float64)


def quintic_for(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic nearest to 1 on [low, high]: its errors at low, its two extrema and high are equal with turning sign."""
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    a = b = c = 0.0
    for _ in range(100):
        x = np.array([low, *inner, high])
        a, b, c, _ = np.linalg.solve(np.stack([x, x**3, x**5, [1, -1, 1, -1]], axis=1), np.ones(4))
        root = np.sqrt(9 * b * b - 20 * a * c)
        inner = [np.sqrt((-3 * b - root) / (10 * c)), np.sqrt((-3 * b + root) / (10 * c))]
    return a, b, c


def composition(steps: int, *, safety: float, cushion: float = 0.02) -> Iterator[tuple[float, ...]]:
    """Greedy composition from [1e-3, 1]; all but the last are damped by the safety factor (arXiv 2505.16932, section 3)."""
    low, high = 1e-3, 1.0
    for step in range(steps):
        powers = np.array([1, 3, 5])
        coefficients = np.array(quintic_for(max(low, cushion * high), high))
        coefficients *= 2 / sum(coefficients @ x**powers for x in (low, high))
        if step < steps - 1:
            coefficients /= safety**powers
        low = coefficients @ low**powers
        high = 2 - low
        yield tuple(coefficients)


def test_the_coefficients_are_those_of_remez() -> None:
    np.testing.assert_allclose(POLAR_EXPRESS_5, list(composition(5, safety=SAFETY_5)), rtol=1e-11)
    np.testing.assert_allclose(POLAR_EXPRESS[:-1], list(islice(composition(8, safety=SAFETY), 7)), rtol=1e-10)
    # By then the interval is a point, to 5e-6, and the best quintic is 1 there with its first and second derivatives 0.
    a, b, c = POLAR_EXPRESS[-1]
    assert (a + b + c, a + 3 * b + 5 * c, 6 * b + 20 * c) == (1, 0, 0)


def ends(values: Tensor, *, method: Orthogonaliser, steps: int) -> Tensor:
    """Where singular values end: diag(t, sqrt(1 - t^2)) has the Frobenius norm 1 and stays diagonal."""
    matrices = torch.diag_embed(torch.stack([values, (1 - values**2).sqrt()], dim=-1))
    return orthogonalise(matrices, method=method, steps=steps, dtype=torch.float64)[:, 0, 0]


@pytest.mark.parametrize(
    ("method", "steps", "low", "high"),
    [
        ("polar_express", 3, 0.156, 1.867),
        ("polar_express", 4, 0.434, 1.566),
        ("polar_express", 6, 0.998, 1.002),
        ("polar_express", 7, 1.0, 1.0),
        ("polar_express", 8, 1.0, 1.0),
        ("polar_express", 12, 1.0, 1.0),
        ("newton_schulz", 5, 0.682, 1.202),
        ("newton_schulz", 6, 0.682, 1.134),
        ("newton_schulz", 7, 0.682, 1.134),
        ("newton_schulz", 12, 0.682, 1.134),
    ],
)
def test_singular_values_end_in_the_published_intervals(method: Orthogonaliser, steps: int, low: float, high: float) -> None:
    found = ends(GRID, method=method, steps=steps)
    assert found.min().item() == pytest.approx(low, abs=6e-4)
    assert found.max().item() == pytest.approx(high, abs=6e-4)


def test_five_steps_have_a_list_of_their_own() -> None:
    """The first five of the other list would end in 0.869-1.131 (published); the last of these five is not damped."""
    x = GRID / SAFETY
    for a, b, c in POLAR_EXPRESS[:5]:
        x = a * x + b * x**3 + c * x**5
    assert (x.min().item(), x.max().item()) == (pytest.approx(0.869, abs=6e-4), pytest.approx(1.131, abs=6e-4))
    found = ends(GRID, method="polar_express", steps=5)
    expected = GRID / SAFETY_5
    for a, b, c in POLAR_EXPRESS_5:
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)  # 1e-7 is added to the norm
    assert 0.85 < found.min().item() < 0.869 < 1.131 < found.max().item() < 1.15


@pytest.mark.parametrize(("method", "bound"), [("polar_express", 0.13), ("newton_schulz", 0.24)])
@pytest.mark.parametrize("shape", [(512, 128), (128, 512), (256, 256)])
def test_the_polar_factor_of_random_matrices(method: Orthogonaliser, bound: float, shape: tuple[int, int]) -> None:
    """Relative Frobenius error to U V^T, published: 0.10 to 0.11 and 0.21 to 0.22; bfloat16 costs next to nothing."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    factor = left @ right
    errors = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = orthogonalise(matrix, method=method, steps=5, dtype=dtype)
        assert found.dtype == torch.float32
        errors[dtype] = float(torch.linalg.matrix_norm(found - factor) / torch.linalg.matrix_norm(factor))
    assert bound / 2 < errors[torch.float64] < bound
    assert errors[torch.float32] == pytest.approx(errors[torch.float64], rel=1e-4)
    assert errors[torch.bfloat16] == pytest.approx(errors[torch.float64], abs=2e-2)


@pytest.mark.parametrize("method", METHODS)
def test_scale_transposition_and_neighbours_change_nothing(method: Orthogonaliser) -> None:
    matrices = torch.randn(2, 3, 9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def polar(x: Tensor) -> Tensor:
        return orthogonalise(x, method=method, steps=5, dtype=torch.float64)

    found = polar(matrices)
    # 1e-7 is added to norms of about 7.
    torch.testing.assert_close(polar(1e3 * matrices), found, rtol=0, atol=1e-6)
    torch.testing.assert_close(polar(matrices.mT), found.mT, rtol=0, atol=1e-12)
    for index in ((0, 0), (1, 2)):
        torch.testing.assert_close(polar(matrices[index]), found[index], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_zero_stays_zero(method: Orthogonaliser) -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 3), method=method, steps=5, dtype=torch.float32), torch.zeros(2, 4, 3))
