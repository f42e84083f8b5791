"""What a model expects of its stop tokens where a text really ends, and where it does not.

The texts are given (teacher-forced). At the true end: the rank and log-probability of every stop token, and of all of them
together. Elsewhere: the probability that the model gives to stopping all the same. A pruned or distilled model that never stops
has usually lost the first; one that stops early has too much of the second.

Shapes: R rows (positions of a text that have a next token), S stop tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.spec.teacher import Context
from limbeck.teachers.score import Reader, passages, score_logits


@dataclass(frozen=True)
class StopReading:
    """Of one text. Nats are natural logarithms of probabilities; rank 1 is the most probable token."""

    mass_R: NDArray[np.float64]
    """Probability of all stop tokens together after each token but the last."""
    end_log_prob_S: NDArray[np.float64]
    """At the last row, of each."""
    end_rank_S: NDArray[np.int64]


@dataclass(frozen=True)
class Ends:
    """Of texts that end in a stop token."""

    log_mass_nats: tuple[float, ...]
    """At each text's end, of all stop tokens together."""
    best_rank: tuple[int, ...]
    """At each text's end, of the best of them."""
    log_prob_by_id: dict[int, float]
    """The mean over texts."""
    median_rank_by_id: dict[int, float]
    false_stop_mass: float
    """The mean over all rows whose next token is no stop token."""
    other_rows: int


def at_ends(reader: Reader, texts: Sequence[NDArray[np.integer]], stops: Sequence[int]) -> Ends:
    """Read texts whose last token is one of the `stops`."""
    readings = list(read_stops(reader, texts, stops))
    elsewhere = [
        reading.mass_R[~np.isin(np.asarray(text[1:], dtype=np.int64), stops)]
        for text, reading in zip(texts, readings, strict=True)
    ]
    log_prob_NS = np.stack([reading.end_log_prob_S for reading in readings])
    rank_NS = np.stack([reading.end_rank_S for reading in readings])
    others = np.concatenate(elsewhere)
    return Ends(
        log_mass_nats=tuple(np.logaddexp.reduce(log_prob_NS, axis=1).tolist()),
        best_rank=tuple(rank_NS.min(axis=1).tolist()),
        log_prob_by_id=dict(zip(stops, log_prob_NS.mean(axis=0).tolist(), strict=True)),
        median_rank_by_id=dict(zip(stops, np.median(rank_NS, axis=0).tolist(), strict=True)),
        false_stop_mass=float(others.mean()) if len(others) else 0.0,
        other_rows=len(others),
    )


def read_stops(reader: Reader, texts: Sequence[NDArray[np.integer]], stops: Sequence[int]) -> Iterator[StopReading]:
    """The reading of each text, in their order; each goes through the model whole."""
    longest = max(len(text) for text in texts)
    ids_S = torch.tensor(list(stops))
    mass = [np.empty(len(text) - 1) for text in texts]
    at_end: dict[int, tuple[Tensor, Tensor]] = {}
    work = passages([len(text) for text in texts], context=Context(window=longest, overlap=0))
    for passage, first, logits_RV in score_logits(reader, texts, work):
        logits_RV = logits_RV.float()
        log_prob_RS = logits_RV[:, ids_S.to(logits_RV.device)] - logits_RV.logsumexp(-1, keepdim=True)
        mass[passage.document][first : first + len(logits_RV)] = log_prob_RS.logsumexp(-1).exp().double().cpu().numpy()
        if first + len(logits_RV) == len(mass[passage.document]):
            last_V = logits_RV[-1]
            rank_S = 1 + (last_V[None] > last_V[ids_S.to(last_V.device), None]).sum(-1)
            at_end[passage.document] = log_prob_RS[-1].double().cpu(), rank_S.cpu()
    for index, mass_R in enumerate(mass):
        if not np.isfinite(mass_R).all():
            raise TeacherError("the model's logits are not finite: it has diverged or its weights are damaged")
        yield StopReading(mass_R, at_end[index][0].numpy(), at_end[index][1].numpy())
