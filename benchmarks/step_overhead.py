"""Seconds of a cached-KD step over a plain cross-entropy step of the same student, reading the store included.

Arms take turns, one step each, on the same batches, so that a machine whose speed drifts slows them alike; the order turns from
step to step. A step of a KD arm reads its rows inside the timed step, not ahead in a thread as training does, and from a store
that has just been unmapped and evicted from the page cache (`posix_fadvise`): it is the worst case. The study's stores must be
there:

    limbeck quickstart && python benchmarks/step_overhead.py --output out/quickstart
"""

import argparse
import os
import statistics
import time

from limbeck.data.store_rows import StoreRows
from limbeck.optim.adamw import build_optimizer
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


def main() -> None:
    """Print the median step of each arm and the median of the paired ratios to the control."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="out/quickstart", help="folder of the quickstart study")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each arm, after two that are not")
    arguments = parser.parse_args()
    study = load_study("quickstart")
    recipes = expand(study, output=arguments.output, overrides={"evaluation.kl_to_teacher": False})
    setups: dict[str, Setup] = {arm: open_setup(recipe) for arm, recipe in recipes.items()}
    optimizers = {arm: build_optimizer(setup.recipe.optimizer, setup.student) for arm, setup in setups.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in setups}
    arms = list(setups)
    for step in range(arguments.steps + 2):
        for arm in arms[step % len(arms) :] + arms[: step % len(arms)]:
            setup = setups[arm]
            if isinstance(setup.loader.source, StoreRows):
                evict(setup.loader.source.signals)
            started = time.perf_counter()
            optimizer_step(setup, optimizers[arm], setup.loader.step(step), lr=1e-4)
            if step >= 2:
                seconds[arm].append(time.perf_counter() - started)
    control = seconds[study.control]
    tokens = setups[study.control].step_costs.tokens
    print(f"{'arm':<12} {'median s':>9} {'tokens/s':>9} {'ratio to control: median':>25} {'quartiles':>16}")
    for arm, taken in seconds.items():
        ratios = sorted(mine / theirs for mine, theirs in zip(taken, control, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(taken)
        print(f"{arm:<12} {median:9.3f} {tokens / median:9.0f} {middle:25.3f} {low:8.3f}-{high:.3f}")


if __name__ == "__main__":
    main()
