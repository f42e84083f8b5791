"""Fit a law: the optimum, its intervals, its errors on the points and on points set aside.

    from limbeck.plan.fit.fitting import fit_law
    from limbeck.plan.fit.forms import CHINCHILLA
    from limbeck.plan.fit.points import Points

    result = fit_law(CHINCHILLA, Points(params, tokens, loss))   # arrays: parameters, tokens, nats per token

Forms: `CHINCHILLA` (eq. 1 of arXiv 2502.08606 with gamma = 1), `SUPERVISED` (eq. 1), `DistillationForm(supervised)` (eq. 8) and
`limbeck.plan.fit.custom.custom_form`.
"""

import numpy as np

from limbeck.errors import DataError, SpecError
from limbeck.plan.fit.bootstrap import interval, resample
from limbeck.plan.fit.custom import CustomForm
from limbeck.plan.fit.forms import DistillationForm, Form, values_of
from limbeck.plan.fit.points import Points, doubts
from limbeck.plan.fit.result import Derived, FitResult, Interval, errors_of
from limbeck.plan.fit.solve import Problem, solve
from limbeck.plan.laws import Array

_HARDLY = 100.0
"""Ends of an interval this many times apart say that the points don't determine the coefficient."""
_AT_BOUND = 1e-6
_SAME = 1e-9


def fit_law(
    form: Form,
    points: Points,
    *,
    delta: float | None = None,
    held_out: Points | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> FitResult:
    """The law of this form that is nearest to `points` in the sense of `limbeck.plan.fit.solve`.

    `delta`: the Huber loss's threshold, of log residuals; None is the form's own. `held_out`: points that only errors are
    measured on. `resamples`: of the bootstrap, drawn with `seed`; 0 leaves intervals out. `DataError` for too few points.
    """
    delta = form.delta if delta is None else delta
    _check(form, points, held_out, delta=delta, resamples=resamples)
    theta_P, objective = solve(form, points, delta=delta)
    resampled_RP = np.empty((0, len(theta_P)))
    if resamples:
        resampled_RP = resample(Problem.of(form, points, delta=delta), theta_P, resamples=resamples, seed=seed)
    coefficients = values_of(form, theta_P)
    intervals = dict(zip(form.coefficients, map(interval, resampled_RP.T), strict=True)) if len(resampled_RP) else {}
    law = form.law(coefficients)
    return FitResult(
        law=law,
        coefficients=coefficients,
        intervals=intervals,
        derived=_compute_exponents(form, coefficients, resampled_RP),
        objective=objective,
        delta=delta,
        fitted=errors_of(law, points),
        held_out=None if held_out is None else errors_of(law, held_out),
        range=points.fitted_range,
        warnings=(*doubts(points), *_same(points), *_weak(form, theta_P, intervals), *_lost(resampled_RP, resamples)),
        resampled_RP=resampled_RP,
    )


def _check(form: Form, points: Points, held_out: Points | None, *, delta: float, resamples: int) -> None:
    if not 0 < delta < np.inf:
        raise SpecError(f"--delta={delta:g} must be above zero")
    if resamples < 0:
        raise SpecError(f"--resamples={resamples} must not be negative")
    if len(points) < len(form.coefficients):
        needed = len(form.coefficients)
        raise DataError(
            f"{len(points)} points can't determine the {needed} coefficients of {form.name}: at least {needed} are needed"
        )
    if isinstance(form, DistillationForm) and any(
        each is not None and each.teacher_loss is None for each in (points, held_out)
    ):
        raise DataError("a distillation law needs the teachers' losses: name their column with --columns teacher_loss=COL")


def _compute_exponents(form: Form, coefficients: dict[str, float], resampled_RP: Array) -> dict[str, Derived]:
    """a* = beta / (alpha + beta) and b* = 1 - a* of N* ~ C**a*, D* ~ C**b* (eq. 2); a formula may lack them."""
    if isinstance(form, CustomForm):
        return {}
    alpha, beta = coefficients["alpha"], coefficients["beta"]
    alpha_R, beta_R = (resampled_RP[:, form.coefficients.index(name)] for name in ("alpha", "beta"))
    share_R = beta_R / (alpha_R + beta_R)
    known = len(share_R) > 0
    return {
        "a_star": Derived(beta / (alpha + beta), interval(share_R) if known else None),
        "b_star": Derived(alpha / (alpha + beta), interval(1 - share_R) if known else None),
    }


def _same(points: Points) -> list[str]:
    """Columns that don't vary, of whose influence nothing can be learnt."""
    varying = {name: values for name, values in points.named().items() if name != "loss"}
    constant = [name for name, values in varying.items() if np.ptp(np.log(values)) < _SAME]
    return [f"{name} is the same in every point, so the law's dependence on it is arbitrary" for name in constant]


def _weak(form: Form, theta_P: Array, intervals: dict[str, Interval]) -> list[str]:
    """Coefficients that the points leave open."""
    low, high = form.bounds_2P
    at_bound = (theta_P <= low + _AT_BOUND) | (theta_P >= high - _AT_BOUND)
    open_ones = [name for name, (least, most) in intervals.items() if least > 0 and most > _HARDLY * least]
    names = [name for name, bound in zip(form.coefficients, at_bound, strict=True) if bound or name in open_ones]
    if not names:
        return []
    if not isinstance(form, CustomForm) and {"alpha", "beta"} & set(names):
        names += ["a*", "b*"]
    return [
        f"the points hardly determine {', '.join(names)}: trust the law's predictions within its range, not these coefficients"
    ]


def _lost(resampled_RP: Array, resamples: int) -> list[str]:
    lost = resamples - len(resampled_RP)
    return [f"{lost} of {resamples} resamples could not be fitted and are left out of the intervals"] if lost else []
