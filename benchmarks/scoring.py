"""Seconds of scoring documents (hidden states, head, selection, encoding) over the teacher's bare forward on the same windows.

The bare forward is transformers' `model(input_ids).logits` on the same padded batches, its logits thrown away. They take
turns, bare forwards before and after each scoring, whose mean counts. Keep `--tokens` below one shard (16,384): then both see
the same batches. Also prints the size of each signal: bytes per token and per distinct stored id, everything on disk counted.

    python benchmarks/scoring.py --tokens 8000 --repeats 5
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from limbeck.compute import pick_device
from limbeck.signals.manifest import info
from limbeck.spec.load import load_recipe
from limbeck.spec.signal import HardSignal, SampledSignal, StoredSignal, TopKSignal
from limbeck.teachers.cache import write_stores
from limbeck.teachers.huggingface import load_teacher
from limbeck.teachers.score import BATCH_TOKENS, batches, padded, passages
from limbeck.train.texts import open_texts

SIGNALS: dict[str, StoredSignal] = {
    "sampled-50": SampledSignal(draws=50),
    "topk-64": TopKSignal(k=64),
    "hard": HardSignal(),
}


def seconds_of(work: Callable[[], None]) -> float:
    """Wall-clock seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Print the ratio of scoring to the bare forward for each signal and for two at once, then the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    recipe = load_recipe("quickstart", {"data.train.sample_tokens": arguments.tokens})
    assert recipe.teacher is not None
    texts, context = open_texts(recipe), recipe.teacher.context
    teacher = load_teacher(recipe.teacher, device=pick_device("auto"))
    documents = [texts.train.document(index) for index in range(len(texts.train))]
    work = batches(passages(texts.train.lengths.tolist(), context=context), batch_tokens=BATCH_TOKENS["cpu"])

    @torch.no_grad()
    def bare() -> None:
        for group in work:
            teacher.logits(padded(documents, group))

    chosen = {name: {name: signal} for name, signal in SIGNALS.items()}
    chosen["sampled-50 + topk-64"] = {name: SIGNALS[name] for name in ("sampled-50", "topk-64")}
    ratios: dict[str, list[float]] = {name: [] for name in chosen}
    speeds: list[float] = []
    facts = {}
    bare()
    before = seconds_of(bare)
    for _ in range(arguments.repeats):
        for name, signals in chosen.items():
            with tempfile.TemporaryDirectory() as folder:
                paths = {Path(folder) / each: signal for each, signal in signals.items()}
                scoring = seconds_of(partial(write_stores, teacher, texts.train, paths, context=context))
                facts.update({path.name: info(path) for path in paths})
            after = seconds_of(bare)
            ratios[name].append(2 * scoring / (before + after))
            speeds.append(texts.train.num_rows / after)
            before = after
    print(f"{texts.train.num_rows:,} rows, bare forward {statistics.median(speeds):,.0f} tokens/s ({teacher.dtype})")
    print(f"{'signal':<22} {'scoring / bare forward: median':>30} {'all':>24}")
    for name, taken in ratios.items():
        print(f"{name:<22} {statistics.median(taken):30.3f} {' '.join(f'{ratio:.3f}' for ratio in sorted(taken)):>24}")
    print(f"{'signal':<22} {'bytes/token':>12} {'ids/token':>10} {'bytes/id':>9}")
    for name, fact in facts.items():
        numbers = [fact[key] for key in ("bytes_per_token", "distinct_ids_per_token", "bytes_per_distinct_id")]
        print(f"{name:<22} {numbers[0]:12.1f} {numbers[1]:10.2f} {numbers[2]:9.2f}")


if __name__ == "__main__":
    main()
