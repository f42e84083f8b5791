"""The orthogonal factor of a matrix by matrix products alone: U V^T of X = U S V^T, approximately.

X is divided by its Frobenius norm; odd quintics X <- a X + (b A + c A^2) X with A = X X^T then move its singular values to 1.
`newton_schulz` (Jordan et al. 2024) repeats one polynomial, whose steep start leaves them between 0.68 and 1.2 for ever.
`polar_express` (Amsel et al., arXiv 2505.16932) takes another at each step, the best for the interval that the one before left,
and converges: five steps bring every singular value above 0.003 of the norm to 0.86-1.14, six to 0.998-1.002.

The coefficients of Polar Express are computed (Remez, greedy composition from [1e-3, 1] with cushion 0.02) and held here as
numbers; the test recomputes them. Each list is made for a safety factor that its polynomials contain and the norm is multiplied
by, so lists are never mixed. Shapes: [..., m, n], each matrix by itself; no gradient is meant to pass.
"""

from typing import Literal

import torch
from torch import Tensor

Orthogonaliser = Literal["newton_schulz", "polar_express"]
Quintic = tuple[float, float, float]

NEWTON_SCHULZ: Quintic = (3.4445, -4.7750, 2.0315)
TINY = 1e-7
"""Keeps the orthogonal factor of a zero matrix zero."""

POLAR_EXPRESS_5: tuple[Quintic, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""For exactly five steps: the last is not damped by the safety factor, `SAFETY_5`."""
SAFETY_5 = 1.02

POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.237312490495555, -23.15774741455819, 16.680568411445908),
    (4.082441999064835, -2.893047735332588, 0.525284925697565),
    (3.9263479922546525, -2.854746803476527, 0.5318022422894986),
    (3.2982187133085197, -2.4245419810267093, 0.48632008358844114),
    (2.297036943455258, -1.6366255812590325, 0.40026284559536335),
    (1.8763805351440408, -1.2347896577722255, 0.3589188750166855),
    (1.8564423485549502, -1.2132449880801421, 0.35680034877602207),
    (15 / 8, -10 / 8, 3 / 8),
)
"""For any other number of steps, cut to it or its last repeated; safety factor `SAFETY`."""
SAFETY = 1.01


def orthogonalise(matrices: Tensor, *, method: Orthogonaliser, steps: int, dtype: torch.dtype) -> Tensor:
    """The orthogonal factor of each matrix of [..., m, n], computed in `dtype`, returned in the input's dtype.

    Relative Frobenius error of a Gaussian 512 x 128 matrix after five steps: about 0.10 (polar_express), 0.22 (newton_schulz).
    """
    quintics, safety = _quintics(method, steps)
    norm = torch.linalg.matrix_norm(matrices, keepdim=True)
    x = (matrices / (norm * safety + TINY)).to(dtype).reshape(-1, *matrices.shape[-2:])
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT  # so that A has the smaller side
    for a, b, c in quintics:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)


def _quintics(method: Orthogonaliser, steps: int) -> tuple[tuple[Quintic, ...], float]:
    """The polynomials in order, and the safety factor that they were made for."""
    if method == "newton_schulz":
        return (NEWTON_SCHULZ,) * steps, 1.0
    if steps == len(POLAR_EXPRESS_5):
        return POLAR_EXPRESS_5, SAFETY_5
    return (*POLAR_EXPRESS, *POLAR_EXPRESS[-1:] * steps)[:steps], SAFETY
