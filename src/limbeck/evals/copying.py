"""Whether a model makes use of what it has just read: copying and induction.

Heads that find the last time a token occurred and say what followed are much of what reading in context is (Olsson et al.,
arXiv 2209.11895), and distilling is said to weaken them (arXiv 2509.01649). Three probes, each by lag, the tokens from a token
to its copy: random tokens, no two alike, read twice; held-out text read twice; and among random tokens a pair A B, of which A
comes again at the end and B is asked for, and once more with another token in A's first place. A reading is measured without
its first token, of which nothing says that it is next.

Tokens are drawn from the ordinary ones of the model's own tokenizer. Nats of models with different tokenizers are of different
tokens: compare those of one tokenizer. Legend: S sequences, L tokens of a block (the lag), T tokens of a sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.data.token_store import TokenStore
from limbeck.data.windows import Window
from limbeck.errors import DataError, LimbeckError, SpecError
from limbeck.eval_results import Metric
from limbeck.evals.subject import EvalModel
from limbeck.progress import Advance, progress, say
from limbeck.report.statistics import ratio_estimate
from limbeck.spec.evals.copying import Copying
from limbeck.teachers.score import Passage, Reader, score_logits

Array = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TwoReadings:
    """Of every sequence [S], means over the tokens of the first and of the second reading, the first token of each left out."""

    first_nats_S: Array
    second_nats_S: Array
    first_accuracy_S: Array
    second_accuracy_S: Array


@dataclass(frozen=True)
class Induction:
    """Of every sequence [S]: what is said of B at the end, and its nats where A has not stood before B."""

    nats_S: Array
    accuracy_S: Array
    unpaired_nats_S: Array


def check(model: EvalModel, spec: Copying) -> None:
    """`LimbeckError` where the window is too short for any lag, or no text is long enough to be read twice."""
    lags = _lags(model, spec)
    store = _texts(model, spec)
    if store is not None and not any(len(_long_enough(store, lag)) for lag in lags):
        raise DataError(
            f"copying: no held-out document of {model.name} has {min(lags)} tokens: set copying.lags=[…] to less, or "
            "copying.text=false"
        )


def measure(model: EvalModel, spec: Copying) -> tuple[dict[str, Metric], dict[str, Any]]:
    """By lag, with intervals over sequences: what the second reading gains over the first, and how often it is right.

    `random_nats_lagL` and `random_accuracy_lagL` are of the second reading; `…_gain_…` is what it is better by than the first.
    All values, those of texts too, are in `details.by_lag`.
    """
    lags, store, ids, start = _lags(model, spec), _texts(model, spec), _ordinary_ids(model), model.tokenizer.start_id
    if left_out := [lag for lag in spec.lags if lag not in lags]:
        say(f"copying: {model.name} reads {model.window(spec.window)} tokens, so lags are {lags} without {left_out}")
    metrics: dict[str, Metric] = {}
    by_lag = []
    rows = sum(spec.sequences * (4 * lag + 4) + 2 * lag * _num_texts(store, lag, spec.sequences) for lag in lags)
    with progress("copying", total=rows) as advance:
        for lag in lags:
            rng = np.random.default_rng([spec.seed, lag])
            blocks_SL = np.stack([rng.choice(ids, lag, replace=False) for _ in range(spec.sequences)])
            random = read_twice(model.reader, blocks_SL, start=start, advance=advance)
            text_SL = None if store is None else _text_blocks(store, lag, sequences=spec.sequences, rng=rng)
            text = None if text_SL is None else read_twice(model.reader, text_SL, start=start, advance=advance)
            tokens_SL1 = np.stack([rng.choice(ids, lag + 1, replace=False) for _ in range(spec.sequences)])
            induced = induction(model.reader, tokens_SL1, start=start, advance=advance)
            found = dict(_metrics(random, text, induced))
            metrics |= {f"{name}_lag{lag}": metric for name, metric in found.items()}
            by_lag.append({"lag": lag, "random": _means(random), "text": _means(text), "induction": _means(induced)})
    return metrics, {"window": model.window(spec.window), "vocabulary": len(ids), "by_lag": by_lag}


def read_twice(reader: Reader, blocks_SL: Ids, *, start: int, advance: Advance) -> TwoReadings:
    """Read `start` block block, for every block."""
    lag = blocks_SL.shape[1]
    starts_S1 = np.full((len(blocks_SL), 1), start)
    nats_ST, right_ST = _scored(reader, np.concatenate([starts_S1, blocks_SL, blocks_SL], 1), advance=advance)
    first, second = slice(1, lag), slice(lag + 1, 2 * lag)  # place t holds what is said of token t + 1
    halves = [values_ST[:, half].mean(1) for values_ST in (nats_ST, right_ST) for half in (first, second)]
    return TwoReadings(*halves)


def induction(reader: Reader, tokens_SL1: Ids, *, start: int, advance: Advance) -> Induction:
    """What is said of B after `start` A B … A, and after `start` C B … A, where A B … C are the tokens [S, L + 1] given."""
    starts_S1 = np.full((len(tokens_SL1), 1), start)
    paired_ST = np.concatenate([starts_S1, tokens_SL1[:, :-1], tokens_SL1[:, :2]], 1)
    unpaired_ST = np.concatenate([starts_S1, tokens_SL1[:, -1:], paired_ST[:, 2:]], 1)
    nats_ST, right_ST = _scored(reader, paired_ST, advance=advance)
    unpaired_nats_ST, _ = _scored(reader, unpaired_ST, advance=advance)
    return Induction(nats_ST[:, -1], right_ST[:, -1], unpaired_nats_ST[:, -1])


@torch.no_grad()
def _scored(reader: Reader, sequences_ST: Ids, *, advance: Advance) -> tuple[Array, Array]:
    """Of every token but the first [S, T - 1]: its nats, and whether it was the most probable one."""
    rows = sequences_ST.shape[1] - 1
    nats_ST, right_ST = np.zeros((2, len(sequences_ST), rows))
    work = [Passage(index, Window(0, 0, rows)) for index in range(len(sequences_ST))]
    for passage, first, logits_RV in score_logits(reader, list(sequences_ST), work):
        stop = first + len(logits_RV)
        next_R = torch.from_numpy(sequences_ST[passage.document, first + 1 : stop + 1]).to(logits_RV.device)
        logits_RV = logits_RV.float()
        nats_R = logits_RV.logsumexp(-1) - logits_RV.gather(1, next_R[:, None])[:, 0]
        nats_ST[passage.document, first:stop] = nats_R.double().cpu().numpy()
        right_ST[passage.document, first:stop] = (logits_RV.argmax(-1) == next_R).double().cpu().numpy()
        advance(len(next_R))
    if not np.isfinite(nats_ST).all():
        raise LimbeckError("copying: what the model says of a sequence is not finite")
    return nats_ST, right_ST


def _lags(model: EvalModel, spec: Copying) -> list[int]:
    """Those asked for that fit twice into the window and have as many different tokens; where none does, the longest."""
    window = model.reading(spec.window, 0, kind=spec.kind).window
    most = min(window // 2, len(_ordinary_ids(model)) - 1)
    if most < 2:
        raise SpecError(f"copying: {model.name} reads {window} tokens, and two blocks of two tokens need 4")
    return sorted({lag for lag in spec.lags if lag <= most}) or [most]


def _ordinary_ids(model: EvalModel) -> Ids:
    """Of the tokens that make up text, in order: neither special nor added to a vocabulary later."""
    backend = model.tokenizer.backend
    aside = {*backend.all_special_ids, *backend.added_tokens_decoder, model.tokenizer.start_id, model.tokenizer.end_id}
    return np.array(sorted(each for each in set(backend.get_vocab().values()) if each not in aside), dtype=np.int64)


def _texts(model: EvalModel, spec: Copying) -> TokenStore | None:
    return model.tokens(model.require_heldout("copying.text=true")) if spec.text else None


def _long_enough(store: TokenStore, lag: int) -> Sequence[int]:
    """Documents of at least so many text tokens."""
    return np.flatnonzero(store.lengths - 2 >= lag).tolist()


def _num_texts(store: TokenStore | None, lag: int, sequences: int) -> int:
    return 0 if store is None else min(sequences, len(_long_enough(store, lag)))


def _text_blocks(store: TokenStore, lag: int, *, sequences: int, rng: np.random.Generator) -> Ids | None:
    """From somewhere in each of as many documents as are asked for, or are long enough; None where none is."""
    there = _long_enough(store, lag)
    if not there:
        return None
    chosen = rng.permutation(there)[:sequences].tolist()

    def block(document: int) -> Ids:
        begin = int(rng.integers(1, store.lengths[document] - lag))  # after the start token, and before the end token
        return store.document(document)[begin : begin + lag].astype(np.int64)

    return np.stack([block(document) for document in chosen])


def _metrics(random: TwoReadings, text: TwoReadings | None, induced: Induction) -> Iterator[tuple[str, Metric]]:
    yield "random_nats", _metric(random.second_nats_S, "lower")
    yield "random_gain_nats", _metric(random.first_nats_S - random.second_nats_S, "higher")
    yield "random_accuracy", _metric(random.second_accuracy_S, "higher")
    yield "random_accuracy_gain", _metric(random.second_accuracy_S - random.first_accuracy_S, "higher")
    if text is not None:
        yield "text_gain_nats", _metric(text.first_nats_S - text.second_nats_S, "higher")
    yield "induction_gain_nats", _metric(induced.unpaired_nats_S - induced.nats_S, "higher")
    yield "induction_accuracy", _metric(induced.accuracy_S, "higher")


def _metric(values_S: Array, better: Literal["lower", "higher"]) -> Metric:
    found = ratio_estimate(values_S, np.ones_like(values_S))
    return Metric(found.value, found.low, found.high, len(values_S), better)


def _means(found: TwoReadings | Induction | None) -> dict[str, float] | None:
    """Of every array, by its name without its shape; and how many sequences there were."""
    if found is None:
        return None
    values = {field.name.removesuffix("_S"): getattr(found, field.name) for field in fields(found)}
    return {name: float(values_S.mean()) for name, values_S in values.items()} | {"sequences": len(next(iter(values.values())))}
