"""Seconds of a cached-KD step over a plain cross-entropy step of the same student, reading the store included.

Arms take turns of a few steps each on the same batches, so that a machine whose speed drifts slows them alike; their order
turns from round to round. A turn starts the arm's own loader, which reads ahead in its thread as it does in training, on a
store that has just been unmapped and evicted from the page cache (`posix_fadvise`), and ends with its last step: what the
thread takes from the step, and the first read that nothing hides, are in it. `--inside` reads each step's rows inside the step
instead: the worst case. "Reading" is the time of the loader alone, nothing training beside it.

The study's stores must be there:

    limbeck quickstart && python benchmarks/step_overhead.py --study quickstart --output out/quickstart
    limbeck study run lab/signal-quality.yaml -o out/signal-quality && \\
        python benchmarks/step_overhead.py --study lab/signal-quality.yaml --output out/signal-quality \\
            --arms ce-s1 sampled-50-s1 topk-12-s1 topk-50-s1 topk-128-s1
"""

import argparse
import os
import statistics
import time
from contextlib import closing

from limbeck.data.store_rows import StoreRows
from limbeck.optim.build import build_optimizer
from limbeck.signals.store import SignalStore
from limbeck.spec.load import load_study
from limbeck.study.expand import expand
from limbeck.train.loop import optimizer_step
from limbeck.train.setup import Setup, open_setup


def evict(signals: SignalStore) -> None:
    """Unmap a store's shards and drop them from the page cache."""
    signals.unmap()
    for path in signals.path.glob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


class Arm:
    """A student with its loader and optimizer."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.optimizer = build_optimizer(setup.recipe.optimizer, setup.student)

    def turn(self, first: int, *, steps: int, inside: bool) -> float:
        """Seconds a step of steps `first`, `first + 1`, …; with `inside`, rows are read in the step that needs them."""
        if isinstance(self.setup.loader.source, StoreRows):
            evict(self.setup.loader.source.signals)
        started = time.perf_counter()
        if inside:
            for step in range(first, first + steps):
                optimizer_step(self.setup, self.optimizer, self.setup.loader.step(step))
            return (time.perf_counter() - started) / steps
        with closing(self.setup.loader.steps(first)) as ahead:
            for _ in range(steps):
                optimizer_step(self.setup, self.optimizer, next(ahead))
            return (time.perf_counter() - started) / steps

    def reading(self, first: int, *, steps: int) -> float:
        """Seconds a step of the loader alone."""
        started = time.perf_counter()
        for step in range(first, first + steps):
            self.setup.loader.step(step)
        return (time.perf_counter() - started) / steps


def main() -> None:
    """Print the median step of each arm, the median and quartiles of the paired ratios to the first, and what reading takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="quickstart")
    parser.add_argument("--output", default="out/quickstart", help="the folder that the study was run with")
    parser.add_argument("--arms", nargs="*", help="the control first; default: all of the study")
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each arm, after one that is not counted")
    parser.add_argument("--inside", action="store_true", help="read rows inside the step")
    arguments = parser.parse_args()
    study = load_study(arguments.study)
    recipes = expand(study, output=arguments.output, overrides={"evaluation.kl_to_teacher": False})
    arms = {name: Arm(open_setup(recipes[name])) for name in arguments.arms or recipes}
    names, seconds = list(arms), {name: [] for name in arms}
    for round_ in range(arguments.rounds + 1):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            found = arms[name].turn(round_ * arguments.steps, steps=arguments.steps, inside=arguments.inside)
            if round_:
                seconds[name].append(found)
    control = seconds[names[0]]
    tokens = next(iter(arms.values())).setup.step_costs.tokens
    print("| arm | median s | tokens/s | ratio: median | quartiles | reading alone, s |\n|---|---|---|---|---|---|")
    for name in names:
        ratios = [mine / its for mine, its in zip(seconds[name], control, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        median = statistics.median(seconds[name])
        reading = arms[name].reading(0, steps=arguments.steps)
        print(f"| {name} | {median:.3f} | {tokens / median:,.0f} | {middle:.3f} | {low:.3f}-{high:.3f} | {reading:.3f} |")


if __name__ == "__main__":
    main()
