"""The least of a sum of Huber losses of log residuals, for many candidates or resamples at once.

    objective_k = sum_m weight_km huber(log L_k(m) - log loss_m)
    huber(r)    = r^2 / 2 where |r| <= delta, delta (|r| - delta / 2) beyond

(arXiv 2203.15556, eq. 9; arXiv 2502.08606, F.1). `polish` walks down all rows at once. Beyond delta the Huber loss is straight,
so Newton's matrix N = J W 1[|r| <= delta] J^T counts few points and can be singular, while that of iteratively reweighted least
squares, R = J W min(1, delta / |r|) J^T, bounds the loss from above and is safe but slow. A step uses N + mu (R + diag R): mu
falls while steps succeed and rises when one fails. `solve` screens thousands of starts in one pass, polishes the best, and
lets SciPy's L-BFGS-B try to go below. Its plain twin is L-BFGS-B from every start; `benchmarks/fitting.py` compares the two.

Suffixes: K rows (candidates or resamples), P coefficients, M points, F features of a point.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError
from limbeck.plan.fit.forms import Form
from limbeck.plan.fit.points import Points
from limbeck.plan.laws import Array

SCREENED = 4096
POLISHED = 64
_FINALISTS = 8
_ROWS = 128
"""At once: their derivatives fit a cache."""
_SWEEPS = 400
_LAST_ITERATIONS = 200
_ROUGH, _FINE = 1e-7, 1e-12
"""Relative gains of a sweep below which a row ends."""
_EXACT = 1e-18
"""An objective that is zero but for rounding: every point is met to about 1e-9."""
_FIRST_DAMPING = 1e-2
_LEAST_DAMPING, _MOST_DAMPING = 1e-7, 1e7
_EASE, _TIGHTEN = 0.2, 6.0


@dataclass(frozen=True)
class Problem:
    """Points as a form sees them: features_FM, log_loss_M, and the Huber loss's threshold."""

    form: Form
    features_FM: Array
    log_loss_M: Array
    delta: float

    @classmethod
    def of(cls, form: Form, points: Points, *, delta: float) -> "Problem":
        """The problem of fitting `form` to `points`."""
        return cls(form, form.features(points), np.log(points.loss), delta)


@dataclass(frozen=True)
class Descended:
    """theta_KP and objective_K where the walk down ended; `settled_K` where it ended by itself."""

    theta_KP: Array
    objective_K: Array
    settled_K: NDArray[np.bool_]


def solve(form: Form, points: Points, *, delta: float) -> tuple[Array, float]:
    """theta_P and the least objective found; `DataError` where no start gives finite losses."""
    problem = Problem.of(form, points, delta=delta)
    starts_KP = form.starts(points, count=SCREENED)
    with np.errstate(all="ignore"):
        screened_K = np.concatenate([objective(problem, rows) for rows in _slices(starts_KP)])
    best = np.argsort(screened_K, kind="stable")[:POLISHED]
    best = best[np.isfinite(screened_K[best])]
    if not len(best):
        raise DataError(f"{form.name} gives no finite positive loss for any start: check the formula and --start")
    ones_1M = np.ones((1, len(points)))
    rough = polish(problem, starts_KP[best], ones_1M, tolerance=_ROUGH)
    finalists_KP = rough.theta_KP[np.argsort(rough.objective_K, kind="stable")[:_FINALISTS]]
    polished = polish(problem, finalists_KP, ones_1M, tolerance=_FINE)
    winner = int(np.argmin(polished.objective_K))
    theta_P, least = polished.theta_KP[winner], float(polished.objective_K[winner])
    tried_P, tried = quasi_newton(problem, theta_P, iterations=_LAST_ITERATIONS)
    return (tried_P, tried) if tried < least else (theta_P, least)


def objective(problem: Problem, theta_KP: Array) -> Array:
    """objective_K; infinite where a prediction isn't finite."""
    residual_KM = problem.form.predict(theta_KP, problem.features_FM) - problem.log_loss_M
    total_K = huber(residual_KM, problem.delta).sum(axis=1)
    return np.where(np.isfinite(total_K), total_K, np.inf)


def huber(residual: Array, delta: float) -> Array:
    """r^2 / 2 within delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residual)
    within = np.minimum(size, delta)
    return within * (size - 0.5 * within)


def polish(problem: Problem, theta_KP: Array, weights_KM: Array, *, tolerance: float, sweeps: int = _SWEEPS) -> Descended:
    """Walk down from every row of theta_KP; weights_KM may have one row for all.

    A row ends when a sweep lowers its objective by less than `tolerance` of it, twice in a row, or damping is at its greatest.
    """
    weights_KM = np.broadcast_to(weights_KM, (len(theta_KP), weights_KM.shape[1]))
    parts = [
        _Descent(problem, theta, weights).run(tolerance, sweeps)
        for theta, weights in zip(_slices(theta_KP), _slices(weights_KM), strict=True)
    ]
    return Descended(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("theta_KP", "objective_K", "settled_K"))
    )


@dataclass(frozen=True)
class _Local:
    """The objective with its gradient and both matrices at one theta a row."""

    objective_K: Array
    gradient_KP: Array
    newton_KPP: Array
    reweighted_KPP: Array

    def choose(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "_Local":
        return _Local(self.objective_K[rows], self.gradient_KP[rows], self.newton_KPP[rows], self.reweighted_KPP[rows])

    def put(self, rows: NDArray[np.bool_], other: "_Local") -> None:
        for name in ("objective_K", "gradient_KP", "newton_KPP", "reweighted_KPP"):
            getattr(self, name)[rows] = getattr(other, name)[rows]


class _Descent:
    """The state of the rows that still move; finished ones are dropped from the work."""

    def __init__(self, problem: Problem, theta_KP: Array, weights_KM: Array) -> None:
        self.problem = problem
        self.theta_KP, self.weights_KM = theta_KP.copy(), weights_KM
        self.damping_K = np.full(len(theta_KP), _FIRST_DAMPING)
        self.quiet_K = np.zeros(len(theta_KP), dtype=np.int64)
        self.rows_K = np.arange(len(theta_KP))

    def run(self, tolerance: float, sweeps: int) -> Descended:
        with np.errstate(all="ignore"):
            self.here = _local(self.problem, self.theta_KP, self.weights_KM)
            end = Descended(self.theta_KP.copy(), self.here.objective_K.copy(), np.zeros(len(self.rows_K), dtype=np.bool_))
            for _ in range(sweeps):
                self._sweep(tolerance)
                end.theta_KP[self.rows_K], end.objective_K[self.rows_K] = self.theta_KP, self.here.objective_K
                done_K = (self.quiet_K >= 2) | (self.damping_K >= _MOST_DAMPING) | (self.here.objective_K <= _EXACT)
                end.settled_K[self.rows_K[done_K]] = True
                if done_K.all():
                    break
                if done_K.any():
                    self._keep(~done_K)
        return end

    def _sweep(self, tolerance: float) -> None:
        trial_KP = np.clip(self.theta_KP - self._step(), *self.problem.form.bounds_2P)
        there = _local(self.problem, trial_KP, self.weights_KM)
        gain_K = self.here.objective_K - there.objective_K
        better_K = gain_K > 0
        small_K = better_K & (gain_K <= tolerance * self.here.objective_K)
        self.quiet_K = np.where(better_K, np.where(small_K, self.quiet_K + 1, 0), self.quiet_K)
        self.damping_K = np.clip(self.damping_K * np.where(better_K, _EASE, _TIGHTEN), _LEAST_DAMPING, _MOST_DAMPING)
        self.theta_KP[better_K] = trial_KP[better_K]
        self.here.put(better_K, there)

    def _step(self) -> Array:
        """The damped step; a coefficient that would leave its bounds is left out of the equations."""
        low, high = self.problem.form.bounds_2P
        gradient_KP, reweighted_KPP = self.here.gradient_KP, self.here.reweighted_KPP
        stuck_KP = ((self.theta_KP <= low) & (gradient_KP > 0)) | ((self.theta_KP >= high) & (gradient_KP < 0))
        free_KP = ~stuck_KP
        diagonal_KP = np.einsum("kpp->kp", reweighted_KPP)
        matrix_KPP = self.here.newton_KPP + self.damping_K[:, None, None] * reweighted_KPP
        matrix_KPP *= free_KP[:, :, None] & free_KP[:, None, :]
        view_KP = np.einsum("kpp->kp", matrix_KPP)
        view_KP += self.damping_K[:, None] * diagonal_KP + 1e-12 * diagonal_KP + stuck_KP + 1e-300
        try:
            return np.linalg.solve(matrix_KPP, (gradient_KP * free_KP)[..., None])[..., 0]
        except np.linalg.LinAlgError:  # one singular matrix stops the batch: damp them all and go on from the gradient
            return gradient_KP * free_KP / (diagonal_KP + 1e-300)

    def _keep(self, kept_K: NDArray[np.bool_]) -> None:
        for name in ("theta_KP", "weights_KM", "damping_K", "quiet_K", "rows_K"):
            setattr(self, name, getattr(self, name)[kept_K])
        self.here = self.here.choose(kept_K)


def _local(problem: Problem, theta_KP: Array, weights_KM: Array) -> _Local:
    log_loss_KM, slopes_KPM = problem.form.predict_with_slopes(theta_KP, problem.features_FM)
    residual_KM = log_loss_KM - problem.log_loss_M
    size_KM = np.abs(residual_KM)
    within_KM = np.minimum(size_KM, problem.delta)
    objective_K = np.einsum("km,km,km->k", weights_KM, within_KM, size_KM - 0.5 * within_KM)
    reweight_KM = within_KM / np.maximum(size_KM, 1e-300) * weights_KM
    transposed_KMP = slopes_KPM.transpose(0, 2, 1)
    weighted_KPM = slopes_KPM * reweight_KM[:, None]
    reweighted_KPP = weighted_KPM @ transposed_KMP
    gradient_KP = (weighted_KPM @ residual_KM[..., None])[..., 0]
    weighted_KPM *= (size_KM <= problem.delta)[:, None]
    newton_KPP = weighted_KPM @ transposed_KMP
    finite_K = np.isfinite(objective_K) & np.isfinite(reweighted_KPP).all(axis=(1, 2)) & np.isfinite(gradient_KP).all(axis=1)
    return _Local(np.where(finite_K, objective_K, np.inf), gradient_KP, newton_KPP, reweighted_KPP)


def quasi_newton(problem: Problem, start_P: Array, *, iterations: int = 2000) -> tuple[Array, float]:
    """SciPy's L-BFGS-B from one start, with the analytic gradient."""
    from scipy.optimize import minimize

    def value_and_gradient(theta_P: Array) -> tuple[float, Array]:
        with np.errstate(all="ignore"):
            log_loss_KM, slopes_KPM = problem.form.predict_with_slopes(theta_P[None], problem.features_FM)
        residual_M = (log_loss_KM - problem.log_loss_M)[0]
        total = float(huber(residual_M, problem.delta).sum()) / problem.delta
        slope_P = slopes_KPM[0] @ np.clip(residual_M / problem.delta, -1, 1)
        return (total, slope_P) if np.isfinite(total) and np.isfinite(slope_P).all() else (1e300, np.zeros_like(theta_P))

    bounds = list(zip(*problem.form.bounds_2P, strict=True))
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(value_and_gradient, start_P, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.x, float(objective(problem, found.x[None])[0])


def _slices(rows: Array) -> list[Array]:
    return [rows[first : first + _ROWS] for first in range(0, len(rows), _ROWS)]
