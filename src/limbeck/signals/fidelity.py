"""What a signal store costs in truth: one budget in nats per token, a line for each thing between teacher and store.

p is the teacher's distribution at the store's temperature and H its entropy, which is stored; all lines are means over
positions. They add up to second order in small errors, and are of two natures. A *bias* is the same in every epoch, and a
student that fits the store perfectly keeps it. *Noise* is fresh at every position: it averages out over positions that a
student treats alike, and costs the whole line only a student that learns every position by heart. H is stored to about a
hundredth (`limbeck.signals.codec`), too high or too low by chance, and enters two of the lines: their means are off by much
less than that.

* **truncation** (bias; `topk`, `topp`). A row tells the head and the tail's mass t, and nothing of the tail's shape; the
  reading that adds least is flat, t / (V - K) for each of the other V - K ids. The line is KL(p || that reading)
  = H(head, t) + t ln(V - K) - H, where H(head, t) is the entropy of head and tail bucket. That is what a student loses who
  makes the tail flat; one whose own tail is nearer the teacher's, as a language model's is, loses less, and how much less no
  row tells. So the line is a bound from above for the others. Zero for `sampled` and `hybrid`.
* **sampling** (noise; `sampled`, `hybrid`). Draws give p̂ with E p̂ = p and Var p̂_i = p_i (1 - p_i) / N (Sparse Logit
  Sampling, arXiv 2503.16870). Because E Σ p̂ ln p = -H, the expected KL(p̂ || p) is H - E H(p̂): the stored entropy less that
  of the draws, an unbiased estimate at every position. For N draws among S ids it is about (S - 1) / 2N where N is large.
  With importance weights p̂ does not sum to one, and the same formula is the generalised KL, Σ p̂ ln(p̂ / p) - p̂ + p. For
  `hybrid` the head is exact and the line is t H(tail) - t E H(p̂ of the tail), where t H(tail) = H - H(head, t).
  `gradient_noise` beside it is E ‖p̂ - p‖², the variance of the loss's gradient with respect to the logits; that of
  cross-entropy on one token drawn from p is 1 - Σ p². It takes two draws of each row that has any.
* **values** (bias). Log-probs are rounded (`limbeck.signals.codec`). Independent errors δ_i of variance σ_i² = step² / 12 turn
  p into p exp(δ) / Z, and KL(p || that) = Var_p(δ) / 2 + O(δ³): on average Σ p_i (1 - p_i) σ_i² / 2. The tail is read as what
  the head leaves, so far as that lies in the step that is stored of it: then its error follows from the others', and the line
  is (Σ p_i σ_i² + Σ p_i² σ_i² / t) / 2. Where it does not, its own step counts like theirs. Ids and counts are exact.
* **teacher** (bias). What quantisation, or anything else, made of a reference teacher: `limbeck.signals.diff` of a reference
  store and this one. Its number is a lower bound, as said there. It is not measured without a reference, nor where what the
  two hold gives no KL: draws come with no probability, so a store of draws takes a reference of draws.
* **temperature** (bias). At τ ≠ 1 the student is fitted to p = softmax(z / τ) and may be used at 1, where the teacher says
  p_1 = p^τ / Z, Z = Σ p^τ: KL(p_1 || p) = (τ - 1) E_1[ln p] - ln Z, the tail again read as flat. It costs nothing where the
  student is used at τ too. Draws alone do not tell it.

Shapes: T positions, K ids of a row, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from limbeck.errors import StoreError
from limbeck.signals.codec.values import WEIGHT_STEP, log_probs_to_steps, steps_to_log_probs
from limbeck.signals.diff import MEANING, diff, fewest_draws, groups
from limbeck.signals.distance import Floats, Head, head_of, shares, weights
from limbeck.signals.store import SignalStore
from limbeck.signals.types import ChunkRows, HardRows, SampledRows, StoredRows, TopKRows
from limbeck.spec.signal import ChunksSignal, HardSignal, HybridSignal, SampledSignal, TopKSignal, TopPSignal, Values

Name = Literal["truncation", "sampling", "values", "teacher", "temperature"]
NATURE: dict[Name, Literal["bias", "noise"]] = {
    "truncation": "bias",
    "sampling": "noise",
    "values": "bias",
    "teacher": "bias",
    "temperature": "bias",
}

Soft = TopKSignal | TopPSignal | SampledSignal | HybridSignal
"""All that holds a distribution."""
_FLAT = "a bound from above: what reading the tail as flat costs; less where a student's own tail is nearer the teacher's"


@dataclass(frozen=True)
class Source:
    """One line of the budget. `nats` per token; None where it cannot be known."""

    name: Name
    nats: float | None
    how: str
    """Exact, an estimate, a bound, or why it is not known."""

    @property
    def nature(self) -> Literal["bias", "noise"]:
        """Whether it stays or averages out."""
        return NATURE[self.name]


@dataclass(frozen=True)
class Fidelity:
    """The budget of a store. Nats per token, but for `gradient_noise`, which is a squared length of a gradient."""

    positions: int
    entropy_nats: float
    """The teacher's, for scale."""
    sources: tuple[Source, ...]
    gradient_noise: float | None
    """None where nothing was drawn, or somewhere a single draw, which does not tell."""

    @property
    def total_nats(self) -> float:
        """The sum of what is known."""
        return sum(source.nats for source in self.sources if source.nats is not None)

    @property
    def dominant(self) -> Source | None:
        """The greatest line; None where all are zero."""
        greatest = max(self.sources, key=lambda source: source.nats or 0.0)
        return greatest if greatest.nats else None

    def as_json(self) -> dict[str, Any]:
        """For scripts and reports."""
        return {
            "positions": self.positions,
            "entropy_nats": self.entropy_nats,
            "sources": [{**asdict(source), "nature": source.nature} for source in self.sources],
            "total_nats": self.total_nats,
            "dominant": self.dominant.name if self.dominant is not None else None,
            "gradient_noise": self.gradient_noise,
        }


def fidelity(
    store: SignalStore, *, reference: SignalStore | None = None, progress: Callable[[int, int], None] | None = None
) -> Fidelity:
    """The budget of a store, every row read once. `progress` is given (rows done, rows in all).

    Raises `StoreError` for a store of `hard` or `chunks`, which holds no distribution over tokens, and where the reference
    speaks of other tokens or at another temperature.
    """
    signal = store.signal
    if isinstance(signal, HardSignal):
        raise StoreError(f"{store.path} holds hard labels and no distribution, so there is nothing to measure it by")
    if isinstance(signal, ChunksSignal):
        raise StoreError(
            f"{store.path} holds log-probs of chunks, whose loss has no such parts: `limbeck cache info` says what it holds"
        )
    teacher = _teacher(store, reference)
    sums: dict[str, float] = {}
    done = 0
    names = [name for name in store.document_ids if store.num_rows(name)]
    for group in groups(store, names):
        rows = store.whole(group).rows
        for name, values_T in _measured(rows, store=store).items():
            sums[name] = sums.get(name, 0.0) + float(values_T.sum())
        done += sum(store.num_rows(name) for name in group)
        if progress is not None:
            progress(done, store.tokens)
    means = {name: total / done for name, total in sums.items()}
    return Fidelity(
        positions=done,
        entropy_nats=means["entropy"],
        sources=_sources(signal, means, teacher=teacher),
        gradient_noise=None if math.isnan(means.get("gradient_noise", math.nan)) else means["gradient_noise"],
    )


def _sources(signal: Soft, means: dict[str, float], *, teacher: Source) -> tuple[Source, ...]:
    truncation = Source("truncation", 0.0, "none: draws are unbiased")
    if "truncation" in means:
        truncation = Source("truncation", max(means["truncation"], 0.0), _FLAT)
    sampling = Source("sampling", 0.0, "none: nothing is drawn")
    if "sampling" in means:
        sampling = Source("sampling", max(means["sampling"], 0.0), "an unbiased estimate of KL(draws || teacher)")
    values = Source("values", 0.0, "none: counts are exact")
    if "values" in means:
        kept = "importance weights" if isinstance(signal, SampledSignal) else signal.values
        values = Source("values", means["values"], f"an estimate, from the steps of {kept}")
    temperature = Source("temperature", 0.0, "none: the store is at temperature 1")
    if signal.temperature != 1:
        how = "not known: draws do not tell" if isinstance(signal, SampledSignal) else "an estimate, the tail read as flat"
        temperature = Source("temperature", means.get("temperature"), how)
    return truncation, sampling, values, teacher, temperature


def _teacher(store: SignalStore, reference: SignalStore | None) -> Source:
    if reference is None:
        return Source("teacher", None, "not measured: name a store of the teacher in full precision with --reference")
    one, two = reference.signal, store.signal
    assert not isinstance(two, HardSignal | ChunksSignal)
    if isinstance(one, HardSignal | ChunksSignal):
        held = "the top-1" if isinstance(one, HardSignal) else "log-probs of chunks"
        return Source("teacher", None, f"not measured: {reference.path} holds {held} alone, which gives no KL")
    if one.temperature != two.temperature:
        raise StoreError(
            f"{reference.path} is at temperature {one.temperature} and {store.path} at {two.temperature}, which would count "
            f"as a difference of teachers; name a reference of signal.temperature={two.temperature}"
        )
    if isinstance(two, SampledSignal) and fewest_draws(one) < 2:
        return Source("teacher", None, "not measured: a store of draws takes a reference of two draws a row or more")
    if isinstance(two, SampledSignal) and fewest_draws(two) < 2:
        return Source("teacher", None, "not measured: rows of a single draw tell no distance from the reference")
    found = diff(reference, store)
    assert found.kl is not None
    return Source("teacher", max(found.kl.value, 0.0), MEANING[found.measure])


def _measured(rows: StoredRows, *, store: SignalStore) -> dict[str, Floats]:
    """Every quantity, position by position, float64 [T]."""
    signal = store.signal
    assert not isinstance(rows, HardRows | ChunkRows) and not isinstance(signal, HardSignal | ChunksSignal)
    entropy_T = rows.entropy_T.double().numpy()
    if isinstance(rows, SampledRows):
        excess_T = entropy_T + _xlogx(shares(rows)).sum(-1)
        found = {"entropy": entropy_T, "sampling": excess_T, **_gradient_noise(rows, mass_T=np.ones(len(entropy_T)))}
        if rows.weights_TK is not None:
            found["values"] = _spread(shares(rows)).sum(-1) * WEIGHT_STEP**2 / 24
        return found
    head = head_of(rows)
    coarse_T = -_xlogx(head.probs_TK).sum(-1) - _xlogx(head.tail_T)
    assert not isinstance(signal, SampledSignal)
    found = {"entropy": entropy_T, "values": _rounding(head, values=signal.values)}
    others_T = np.maximum(store.identity.vocab_size - (head.probs_TK > 0).sum(-1), 1)
    if signal.temperature != 1:
        found["temperature"] = _temperature(head, others_T, temperature=signal.temperature)
    if isinstance(rows, TopKRows):
        return {**found, "truncation": coarse_T + head.tail_T * np.log(others_T) - entropy_T}
    drawn = SampledRows(rows.drawn_ids_TM, rows.counts_TM, rows.entropy_T)
    found["sampling"] = entropy_T - coarse_T + head.tail_T * _xlogx(shares(drawn)).sum(-1)
    return {**found, **_gradient_noise(drawn, mass_T=head.tail_T)}


def _xlogx(values: Floats) -> Floats:
    return values * np.log(np.where(values > 0, values, 1.0))


def _gradient_noise(rows: SampledRows, *, mass_T: Floats) -> dict[str, Floats]:
    """E ‖p̂ - p‖², unbiased: (E[w²] - Σ p²) / N of the drawn distribution, times the squared mass it stands for.

    NaN for a row of a single draw; 0 where the draws stand for no mass, and so are none.
    """
    counts_TK, weights_TK = rows.counts_TK.double().numpy(), weights(rows)
    draws_T = counts_TK.sum(-1)
    enough_T = np.maximum(draws_T, 2)
    second_T = (counts_TK * weights_TK**2).sum(-1) / enough_T
    squares_T = (counts_TK * (counts_TK - 1) * weights_TK**2).sum(-1) / (enough_T * (enough_T - 1))
    noise_T = np.where(draws_T < 2, np.nan, mass_T**2 * (second_T - squares_T) / enough_T)
    return {"gradient_noise": np.where(mass_T > 0, noise_T, 0.0)}


def _temperature(head: Head, others_T: Floats, *, temperature: float) -> Floats:
    """KL(p_1 || p) of head and flat tail, with p at the temperature and p_1 ∝ p ** temperature."""
    flat_T = head.tail_T / others_T
    powers_TK = head.probs_TK**temperature
    powers_T = others_T * flat_T**temperature
    total_T = powers_TK.sum(-1) + powers_T
    logs_TK, logs_T = (np.log(np.where(values > 0, values, 1.0)) for values in (head.probs_TK, flat_T))
    mean_T = ((powers_TK * logs_TK).sum(-1) + powers_T * logs_T) / total_T
    return (temperature - 1) * mean_T - np.log(total_T)


def _rounding(head: Head, *, values: Values) -> Floats:
    """Half the expected variance of the errors of the log-probs, tail included."""
    tail_T = np.maximum(head.tail_T, 1e-30)
    variances_TK = _steps(head.probs_TK, values=values) ** 2 / 12
    tail_variances_T = _steps(head.tail_T, values="uint8") ** 2 / 12
    moved_T = (head.probs_TK**2 * variances_TK).sum(-1)
    follows_T = (head.probs_TK * variances_TK).sum(-1) + moved_T / tail_T
    apart_T = (_spread(head.probs_TK) * variances_TK).sum(-1) + _spread(head.tail_T) * tail_variances_T
    return np.where(moved_T / tail_T**2 < tail_variances_T, follows_T, apart_T) / 2


def _spread(probs: Floats) -> Floats:
    return probs * (1 - probs)


def _steps(probs: Floats, *, values: Values) -> Floats:
    """How far apart the log-probs are that can be stored, near each of the given probabilities; nats."""
    steps = log_probs_to_steps(np.log(np.where(probs > 0, probs, 1.0)), values=values)
    most = int(log_probs_to_steps(np.array([-np.inf]), values=values)[0])
    above, below = np.maximum(steps - 1, 0), np.minimum(steps + 1, most)
    between = steps_to_log_probs(above, values=values) - steps_to_log_probs(below, values=values)
    return between.astype(np.float64) / (below - above)
