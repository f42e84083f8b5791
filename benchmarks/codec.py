"""Bytes of a signal store by what they are for, against what no code can go below, and how fast rows are written and read.

SmolLM2-135M scores State of the Union addresses (one shard of `--tokens`), and the rows of every kind of signal are encoded.
Bits are those that the coder's lanes grow by; "lanes" is what they and their lengths take beyond that, "tables" the model,
"index" the shard's index without its fixed trailer. Floors, in bytes of a token:

* `draws`: -log2 of the probability of a row's draws as a multiset under the teacher itself. Only who runs the teacher gets
there. * `frequency`: ids one by one at their frequency in the other half of the documents, less log2 K! for a set: no contexts.

Decoding is measured in the process's CPU time, which is that of one core, on pieces of whole documents, as a loader's thread
reads them.

    python benchmarks/codec.py --tokens 16000
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln

from limbeck.compute import pick_device
from limbeck.signals.codec import Encoded, Piece, decode, encode, lanes, write, write_sets
from limbeck.signals.rows import concatenate
from limbeck.signals.select import select_all
from limbeck.signals.types import HardRows, HybridRows, SampledRows, SparseRows
from limbeck.spec.load import load_recipe
from limbeck.spec.signal import HardSignal, HybridSignal, SampledSignal, StoredSignal, TopKSignal, TopPSignal
from limbeck.teachers.huggingface import load_teacher
from limbeck.teachers.score import passages, score_logits
from limbeck.train.texts import open_texts

SIGNALS: dict[str, StoredSignal] = {
    "sampled-12": SampledSignal(draws=12),
    "sampled-50": SampledSignal(draws=50),
    "sampled-50 top-1": SampledSignal(draws=50, keep_top1=True),
    "sampled-50 at 0.8": SampledSignal(draws=50, proposal_temperature=0.8),
    "sampled-10..50": SampledSignal(draws=50, min_draws=10, full_entropy_nats=3.0),
    "topk-12 uint8": TopKSignal(k=12, values="uint8"),
    "topk-50 uint8": TopKSignal(k=50, values="uint8"),
    "topk-64 uint8": TopKSignal(k=64, values="uint8"),
    "topk-128 uint8": TopKSignal(k=128, values="uint8"),
    "topk-12 float16": TopKSignal(k=12),
    "topk-50 float16": TopKSignal(k=50),
    "topk-64 float16": TopKSignal(k=64),
    "topk-128 float16": TopKSignal(k=128),
    "topp-0.95 uint8": TopPSignal(values="uint8"),
    "hybrid-12+16 uint8": HybridSignal(values="uint8"),
    "hard": HardSignal(),
}
COMPONENTS = ("ids", "classes", "sizes", "counts or values", "checks", "entropy, tail", "lanes", "tables", "index")
_OF_TABLE = {
    "number": "entropy, tail",
    "base": "sizes",
    "count": "sizes",
    "class": "classes",
    "place": "checks",
    "first": "checks",
}
Documents = list[tuple[np.ndarray, SparseRows]]


def bits_held(writer: lanes.LaneWriter) -> float:
    """All that lanes hold: words, and the bits of their states."""
    return float(16 * writer._filled.sum() + np.log2(np.maximum(writer._state, 1).astype(np.float64)).sum())


@contextmanager
def accounts(bits: Counter[str]) -> Iterator[None]:
    """While open, adds up what every part of `encode` makes lanes grow by."""
    numbers, sets, marks = write._Numbers._write, write.write_sets, write_sets._write
    tokens = write._Numbers.write_tokens

    def measured(work: Callable[..., None], name: Callable[..., str], lanes_of: Callable[..., Any]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            before = bits_held(lanes_of(*arguments))
            work(*arguments)
            bits[name(*arguments)] += bits_held(lanes_of(*arguments)) - before

        return call

    def count_marks(*arguments: Any) -> None:
        _, _, model, held, ids, mark_rows = arguments
        frequency = model.tables.frequency_P[model.tables.at_R[mark_rows] + held.mark_symbol_E[ids]]
        bits["counts or values"] += float((11 - np.log2(frequency.astype(np.float64)) + held.mark_bits.precision[ids]).sum())
        marks(*arguments)

    def count_tokens(self: Any, rows: np.ndarray) -> None:
        inside = sum(value for key, value in bits.items() if key == "checks")
        before = bits_held(self._lanes)
        tokens(self, rows)
        bits["checks"] = inside + bits_held(self._lanes) - before

    write._Numbers._write = measured(
        numbers, lambda self, table, *_: _OF_TABLE[table.rstrip("0123456789")], lambda self, *_: self._lanes
    )
    write._Numbers.write_tokens = count_tokens
    write.write_sets = measured(sets, lambda *_: "ids", lambda held, *_: held)
    write_sets._write = count_marks
    try:
        yield
    finally:
        write._Numbers._write, write._Numbers.write_tokens = numbers, tokens
        write.write_sets, write_sets._write = sets, marks


def ids_of(rows: SparseRows) -> int:
    """Distinct ids that are stored."""
    match rows:
        case SampledRows():
            return int((rows.counts_TK > 0).sum())
        case HardRows():
            return len(rows.ids_T)
        case HybridRows():
            return int((rows.log_probs_TK > -torch.inf).sum()) + int((rows.counts_TM > 0).sum())
        case _:
            return int((rows.log_probs_TK > -torch.inf).sum())


def index_bytes(encoded: Encoded) -> int:
    """The shard's index: an id of 32 hex digits, rows, bytes and crc of each document, as `signals/shards.py` writes them."""
    columns = {
        "document_ids": ["0" * 32 for _ in encoded.documents],
        "num_rows": [400 for _ in encoded.documents],
        "sizes": [len(data) for data in encoded.documents],
        "crcs": [3_000_000_000 for _ in encoded.documents],
    }
    return len(json.dumps(columns, separators=(",", ":")))


def cpu_seconds(work: Callable[[], object], *, repeats: int = 5) -> float:
    """The least of some runs."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def report(name: str, documents: Documents, signal: StoredSignal, *, vocab_size: int) -> None:
    """One line of each table."""
    bits: Counter[str] = Counter()
    with accounts(bits):
        encoded = encode(documents, signal=signal, vocab_size=vocab_size)
    num_rows = sum(len(tokens) - 1 for tokens, _ in documents)
    num_ids = sum(ids_of(rows) for _, rows in documents)
    parts = {key: value / 8 / num_rows for key, value in bits.items()}
    parts["ids"] -= parts.get("counts or values", 0.0)
    parts["lanes"] = (
        sum(map(len, encoded.documents)) / num_rows - sum(bits.values()) / 8 / num_rows + parts.get("counts or values", 0.0)
    )
    parts["tables"], parts["index"] = len(encoded.model) / num_rows, index_bytes(encoded) / num_rows
    total = sum(parts.values())
    cells = " ".join(f"{parts.get(key, 0.0):8.2f}" for key in COMPONENTS)
    writing = num_rows / cpu_seconds(lambda: encode(documents, signal=signal, vocab_size=vocab_size), repeats=2)
    pieces = [
        Piece(np.frombuffer(data, dtype=np.uint8), encoded.model, len(tokens) - 1, 0, len(tokens) - 1)
        for data, (tokens, _) in zip(encoded.documents, documents, strict=True)
    ]
    speeds = []
    for wanted in (2_000, 4_000, 16_000):
        ends = np.cumsum([piece.num_rows for piece in pieces])
        some = pieces[: int(np.searchsorted(ends, wanted)) + 1]
        seconds = cpu_seconds(lambda some=some: decode(some, signal=signal, vocab_size=vocab_size))
        speeds.append(sum(piece.num_rows for piece in some) / seconds)
    print(
        f"{name:<20} {num_ids / num_rows:7.2f} {total:8.2f} {total / num_ids * num_rows:6.3f} {cells} {writing:9,.0f} "
        + " ".join(f"{speed:9,.0f}" for speed in speeds),
        flush=True,
    )


def frequency_floor(rows: SparseRows) -> float:
    """Bytes of a token: ids of the second half at their frequency in the first, less the order of a set."""
    assert isinstance(rows, SampledRows)
    valid = (rows.counts_TK > 0).numpy()
    half = np.arange(len(valid)) < len(valid) // 2
    ids = rows.ids_TK.numpy()
    seen = np.bincount(ids[half][valid[half]], minlength=int(ids.max()) + 1) + 0.1
    bits = -np.log2(seen / seen.sum())[ids] * valid
    return float((bits.sum(1) - gammaln(valid.sum(1) + 1) / math.log(2))[~half].mean() / 8)


def main() -> None:
    """Score, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_000)
    arguments = parser.parse_args()
    recipe = load_recipe("quickstart", {"data.train.sample_tokens": arguments.tokens})
    assert recipe.teacher is not None
    texts, context = open_texts(recipe).train, recipe.teacher.context
    teacher = load_teacher(recipe.teacher, device=pick_device("auto"))
    tokens = [texts.document(index).astype(np.int64) for index in range(len(texts))]
    taken: list[list[tuple[SparseRows, ...]]] = [[] for _ in tokens]
    multiset: dict[str, list[torch.Tensor]] = {"sampled-12": [], "sampled-50": []}
    for passage, first, logits_RV in score_logits(teacher, tokens, passages(texts.lengths.tolist(), context=context)):
        positions = torch.arange(first, first + len(logits_RV))
        rows = select_all(logits_RV, list(SIGNALS.values()), document_id=texts.ids[passage.document], positions_T=positions)
        taken[passage.document].append(rows)
        log_p_RV = logits_RV.double().log_softmax(-1).cpu()
        for name, of_signal in zip(SIGNALS, rows, strict=True):
            if name in multiset and isinstance(of_signal, SampledRows):
                counts = of_signal.counts_TK.double()
                ln_p = (counts * log_p_RV.gather(1, of_signal.ids_TK)).sum(1) + torch.lgamma(counts.sum(1) + 1)
                multiset[name].append((torch.lgamma(counts + 1).sum(1) - ln_p) / math.log(2) / 8)
    print(f"{texts.num_rows:,} rows; bytes of a token, tokens/s of one core\n")
    print(f"{'signal':<20} {'ids':>7} {'bytes':>8} {'/id':>6} " + " ".join(f"{key[:8]:>8}" for key in COMPONENTS), end="")
    print(f" {'encode':>9} {'read 2k':>9} {'read 4k':>9} {'read 16k':>9}")
    for place, (name, signal) in enumerate(SIGNALS.items()):
        documents = [(ids, concatenate([part[place] for part in parts])) for ids, parts in zip(tokens, taken, strict=True)]
        report(name, documents, signal, vocab_size=teacher.vocab_size)
        if name in multiset:
            floor = frequency_floor(concatenate([rows for _, rows in documents]))
            print(f"{'  floors':<20} draws {torch.cat(multiset[name]).mean():.2f}, ids by frequency {floor:.2f}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
