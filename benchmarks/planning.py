"""Seconds of one optimum of the planner over SciPy's SLSQP from several starts, and which of the two reaches the lower loss.

The problems are seven students and budgets in the four scenarios. SLSQP is used as the paper does (arXiv 2502.08606): the logs
of D_S, N_T and D_T under the budget of eq. 9, from starts drawn evenly in the box of the planner's own bounds, on the planner's
own laws; then D_S is set to what the budget leaves, so that both spend all of it. They take turns. A difference of less than
1e-7 nats is a tie; good starts are those that end no higher than a tie. Also prints seconds of the crossovers, and of the cost
of a loss, in all scenarios.

    python benchmarks/planning.py --starts 20 --repeats 3
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.optimize import minimize

from limbeck.plan.allocate import BEST_CASE, SCENARIOS, Bounds, Scenario, Size, distilled
from limbeck.plan.compare import crossover, efficiency
from limbeck.plan.family import flops_per_token
from limbeck.plan.laws import DISTILLATION, SUPERVISED

PROBLEMS = [(3e8, 1e21), (1e9, 1e21), (1e9, 1e22), (1e9, 1e24), (3e9, 1e22), (1e10, 1e23), (1e10, 1e25)]
COSTS = [(5e8, 2.4), (1e9, 2.2), (1e10, 1.9)]
TIE = 1e-7


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def by_slsqp(student: Size, *, flops: float, scenario: Scenario, starts: int, seed: int) -> np.ndarray:
    """The student loss that SLSQP reaches from each start; infinite where it ends beyond the budget."""
    generator = np.random.default_rng(seed)
    bounds = Bounds()
    box = np.log([(1.0, flops / student.training_flops_per_token), bounds.teacher_params, bounds.teacher_tokens])

    def log_loss(place: np.ndarray) -> float:
        return float(DISTILLATION.log_loss(np.log(student.params), place[0], SUPERVISED.log_loss(place[1], place[2])))

    def teacher_flops(place: np.ndarray) -> tuple[float, float]:
        per_token = float(flops_per_token(np.exp(place[1])))
        return scenario.inference * per_token, scenario.pretraining * 3 * per_token * float(np.exp(place[2]))

    def log_left(place: np.ndarray) -> float:
        reading, pretraining = teacher_flops(place)
        return float(np.log(flops / ((student.training_flops_per_token + reading) * np.exp(place[0]) + pretraining)))

    def spend_all(place: np.ndarray) -> float:
        reading, pretraining = teacher_flops(place)
        tokens = (flops - pretraining) / (student.training_flops_per_token + reading)
        return float(np.exp(log_loss(np.array([np.log(tokens), *place[1:]])))) if tokens >= 1 else np.inf

    reached = []
    for start in generator.uniform(*box.T, size=(starts, 3)):
        found = minimize(
            log_loss,
            start,
            method="SLSQP",
            bounds=box,
            constraints=[{"type": "ineq", "fun": log_left}],
            options={"ftol": 1e-12, "maxiter": 200},
        )
        place = np.clip(found.x, *box.T)
        reached.append(spend_all(place) if np.isfinite(place).all() else np.inf)
    return np.array(reached)


def main() -> None:
    """Print the ratio of times, who reaches the lower loss, and seconds of what is built on the optima."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{'scenario':<34} {'ms':>6} {'SLSQP ms':>9} {'ratio':>7} {'lower':>6} {'tie':>4} {'higher':>7} {'good starts':>12}")
    distilled(Size.of_family(1e9), flops=1e21, scenario=BEST_CASE)
    for scenario in SCENARIOS:
        ours: list[float] = []
        theirs: list[float] = []
        gaps: list[np.ndarray] = []
        for repeat in range(arguments.repeats):
            for params, flops in PROBLEMS:
                student = Size.of_family(params)
                ours.append(seconds_of(partial(distilled, student, flops=flops, scenario=scenario)))
                started = time.perf_counter()
                losses = by_slsqp(student, flops=flops, scenario=scenario, starts=arguments.starts, seed=repeat)
                theirs.append(time.perf_counter() - started)
                gaps.append(losses - distilled(student, flops=flops, scenario=scenario).loss_nats)
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        best = np.array([gap.min() for gap in gaps])
        lower, higher = int((best > TIE).sum()), int((best < -TIE).sum())
        print(
            f"{scenario.name:<34} {1e3 * statistics.median(ours):6.1f} {1e3 * statistics.median(theirs):9.0f} {ratio:7.4f} "
            f"{lower:6d} {len(best) - lower - higher:4d} {higher:7d} {np.mean(np.array(gaps) < TIE):12.0%}"
        )
    students = [Size.of_family(params) for params, _ in COSTS]
    crossings = [seconds_of(lambda student=student: [crossover(student, each) for each in SCENARIOS]) for student in students]
    costs = [seconds_of(partial(efficiency, Size.of_family(params), loss_nats=loss)) for params, loss in COSTS]
    print(
        f"crossovers of four scenarios: {statistics.median(crossings):.2f} s; cost of a loss: {statistics.median(costs):.2f} s"
    )


if __name__ == "__main__":
    main()
