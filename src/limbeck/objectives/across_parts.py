"""Terms across tokenizers as parts: the units of text that they score, and what they read of the student's logits there.

Shapes: N positions that count, R rows of all blocks, B of one block, n its own, K ids of a row, S the student's vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import log

import torch
from torch import Tensor

from limbeck.objectives.across_layout import Positions, Units, chunk_units, joined_units, single_units
from limbeck.objectives.across_prepared import Across, Projection
from limbeck.objectives.across_terms import coarse_forward_kl, likelihood_matching, shared_divergence, sorted_distance
from limbeck.objectives.chunks import Reader
from limbeck.objectives.parts import unused
from limbeck.objectives.schedule import Moment, weight_at
from limbeck.signals.types import ChunkRows
from limbeck.spec.across_tokenizers import ALM, GOLD, ULD, AcrossTerm, ByteKL, ProjectedKL
from limbeck.spec.objective import Objective, terms

AnyAcross = ALM | ULD | GOLD | ProjectedKL | ByteKL


@dataclass(frozen=True, eq=False)
class Texts:
    """What counts of a batch."""

    positions: Positions
    targets_N: Tensor
    rows: ChunkRows


@dataclass(frozen=True, eq=False)
class Seen:
    """What a part sees of a block."""

    units: Units
    """Of the block's own positions; last positions count from its beginning."""
    rows: ChunkRows
    targets_n: Tensor
    log_prob_n: Tensor
    """The student's, of the text's own tokens."""
    gathered_nK: Tensor | None
    """The student's log-probs at the part's ids."""
    read_B: Tensor | None
    """What the part's reader made of the softmax; one position more than the block's own where there is one."""

    @property
    def read(self) -> Tensor:
        """Of the block's own positions."""
        assert self.read_B is not None
        return self.read_B[: len(self.log_prob_n)]

    @property
    def log_prob_of_unit_n(self) -> Tensor:
        """At last positions."""
        return self.sum_of_unit(self.log_prob_n)

    def sum_of_unit(self, values_n: Tensor) -> Tensor:
        """At last positions, the sum over the unit's positions."""
        inside_n = self.units.inside_N.reshape(-1, *[1] * (values_n.dim() - 1))
        return torch.zeros_like(values_n).index_add(0, self.units.last_N, torch.where(inside_n, values_n, 0.0))

    def scored(self, values_n: Tensor, *, otherwise: float = 0.0) -> Tensor:
        """The values where a unit that counts ends."""
        return values_n.where(self.units.scored_N, otherwise)


@dataclass(frozen=True, eq=False)
class AcrossPart:
    """A divergence per unit."""

    name: str
    factor: float
    units: Units
    loss: Callable[[Seen], Tensor]
    """Nats at the last position of each unit; any finite number elsewhere."""
    ids_NK: Tensor | None = None
    """The student's ids whose log-probs it asks for."""
    reader: Callable[[Tensor], Reader] | None = None
    """Of the position of each row."""
    entries: int = 0
    """Of the most parts of a softmax that the reader makes for each position, so that blocks leave memory for them."""
    looks_ahead: bool = False
    """It reads the position after a unit."""


def across_parts(objective: Objective, texts: Texts, *, across: Across, moment: Moment) -> list[AcrossPart]:
    """The terms across tokenizers; those of equal kind are numbered."""
    rows = texts.rows
    chunks = chunk_units(texts.positions, tokens_N=rows.tokens_T, log_prob_N=rows.log_prob_T)
    parts: list[AcrossPart] = []
    for weighted in terms(objective):
        if isinstance(term := weighted.term, AcrossTerm):
            part = _part(term, texts, chunks=chunks, across=across)
            name = unused(term.kind, {part.name for part in parts})
            parts.append(replace(part, name=name, factor=part.factor * weight_at(weighted.weight, moment)))
    return parts


def _part(term: AnyAcross, texts: Texts, *, chunks: Units, across: Across) -> AcrossPart:
    match term:
        case ALM():
            return _alm(term, texts, chunks=chunks, across=across)
        case ULD():
            by_index = across.distribution == "index"
            units = single_units(_has_ids(texts.rows), texts.rows.log_prob_T) if by_index else chunks
            reader = partial(_largest, k=texts.rows.ids_TK.shape[1], ids=None)
            return AcrossPart(term.kind, 1.0, units, partial(_uld, by_index), reader=lambda _: reader)
        case GOLD():
            weight = across.matched_share if term.matched_weight is None else term.matched_weight
            reader = partial(_largest, k=texts.rows.ids_TK.shape[1], ids=across.unmatched_S)
            loss = partial(_gold, term.beta, weight, across)
            ids_NK = _equals(texts.rows, across).clamp(min=0)
            return AcrossPart(term.kind, 1.0, chunks, loss, ids_NK=ids_NK, reader=lambda _: reader)
        case ProjectedKL():
            assert across.pieces is not None, "prepare_across was given another objective"
            return _projected(term, _projected_kl, texts, chunks=chunks, projection=across.pieces)
        case ByteKL():
            assert across.bytes is not None, "prepare_across was given another objective"
            return _projected(term, _byte_kl, texts, chunks=chunks, projection=across.bytes)


def _has_ids(rows: ChunkRows) -> Tensor:
    return (rows.log_probs_TK > -torch.inf).any(-1)


def _alm(term: ALM, texts: Texts, *, chunks: Units, across: Across) -> AcrossPart:
    scale = term.temperature if term.rescaled else 1.0
    if term.boundary is None:
        return AcrossPart(term.kind, scale, chunks, partial(_alm_loss, term.temperature))
    bounded_N = across.special_S[texts.targets_N]
    closes_N = bounded_N | (texts.rows.boundary_T >= log(term.boundary))
    units = joined_units(chunks, texts.positions, closes_N=closes_N, needs_next_N=~bounded_N)

    def mass(softmax_BV: Tensor, _: slice) -> Tensor:
        bounding_S = across.bounding_S.to(softmax_BV.dtype)
        return softmax_BV[:, : len(bounding_S)] @ bounding_S

    loss = partial(_bounded_alm_loss, term.temperature, across)
    return AcrossPart(term.kind, scale, units, loss, reader=lambda _: mass, looks_ahead=True)


def _alm_loss(temperature: float, seen: Seen) -> Tensor:
    t_n, s_n = seen.scored(seen.units.log_prob_N, otherwise=-1.0), seen.scored(seen.log_prob_of_unit_n, otherwise=-1.0)
    return likelihood_matching(t_n, s_n, temperature=temperature)


def _bounded_alm_loss(temperature: float, across: Across, seen: Seen) -> Tensor:
    """With the log-prob of a boundary after the unit, which follows by itself from a special token."""
    assert seen.read_B is not None
    next_n = (seen.units.last_N + 1).clamp(max=len(seen.read_B) - 1)
    bounded_n = across.special_S[seen.targets_n]
    ahead_n = seen.read_B.clamp(min=torch.finfo(seen.read_B.dtype).tiny).log()[next_n]
    t_n = seen.units.log_prob_N + seen.rows.boundary_T.where(~bounded_n, 0.0)
    s_n = seen.log_prob_of_unit_n + ahead_n.where(~bounded_n, 0.0)
    return likelihood_matching(seen.scored(t_n, otherwise=-1.0), seen.scored(s_n, otherwise=-1.0), temperature=temperature)


def _largest(softmax_BV: Tensor, _: slice, *, k: int, ids: Tensor | None) -> Tensor:
    """The k largest probabilities, among some ids, largest first; fewer where there are not as many."""
    some_BV = softmax_BV if ids is None else softmax_BV[:, ids]
    return some_BV.topk(min(k, some_BV.shape[1])).values


def _merged(seen: Seen) -> tuple[Tensor, Tensor]:
    """The probability of a chunk's tokens before its last, by teacher and student: GOLD's "bayesian" merge (TRL)."""
    before_n = seen.log_prob_of_unit_n - seen.log_prob_n
    return seen.scored(seen.rows.before_T), seen.scored(before_n)


def _uld(by_index: bool, seen: Seen) -> Tensor:
    p_nK, q_nK = seen.rows.log_probs_TK.exp().sort(-1, descending=True).values, seen.read
    tail_p_n, tail_q_n = seen.rows.tail_T, 1 - q_nK.sum(-1)
    if not by_index:
        before_p_n, before_q_n = (each.exp() for each in _merged(seen))
        p_nK, tail_p_n = p_nK * before_p_n[:, None], tail_p_n * before_p_n
        q_nK, tail_q_n = q_nK * before_q_n[:, None], tail_q_n * before_q_n
    return sorted_distance(p_nK, q_nK, tail_p_C=tail_p_n, tail_q_C=tail_q_n)


def _equals(rows: ChunkRows, across: Across) -> Tensor:
    """The student's tokens that the row's ids equal, or -1."""
    equal_TK = across.equal_T[rows.ids_TK.clamp(max=len(across.equal_T) - 1)]
    return equal_TK.where(rows.log_probs_TK > -torch.inf, -1)


def _gold(beta: float, weight: float, across: Across, seen: Seen) -> Tensor:
    """Equal tokens among the row's ids by Jensen-Shannon, with one outcome for all else; the others sorted, by L1."""
    assert seen.gathered_nK is not None
    matched_nK = _equals(seen.rows, across) >= 0
    before_p_n, before_q_n = _merged(seen)
    log_p_nK = seen.rows.log_probs_TK + before_p_n[:, None]
    log_q_nK = seen.gathered_nK + before_q_n[:, None]
    shared_n = shared_divergence(log_p_nK, log_q_nK, real_CK=matched_nK, beta=beta)
    others_p_nK = log_p_nK.exp().where(~matched_nK, 0.0).sort(-1, descending=True).values
    others_q_nK = seen.read * before_q_n.exp()[:, None]
    matched_q_n = torch.where(matched_nK, log_q_nK.exp(), 0.0).sum(-1)
    rest_n = sorted_distance(
        others_p_nK,
        others_q_nK,
        tail_p_C=seen.rows.tail_T * before_p_n.exp(),
        tail_q_C=before_q_n.exp() - matched_q_n - others_q_nK.sum(-1),
    )
    return weight * shared_n + (1 - weight) * rest_n


def _projected(
    term: AnyAcross,
    loss: Callable[[Projection, Seen], Tensor],
    texts: Texts,
    *,
    chunks: Units,
    projection: Projection,
) -> AcrossPart:
    """What the projection makes of the student at every position of a chunk, at the ids of the chunk's row."""
    ids_NK = texts.rows.ids_TK[chunks.last_N].clamp(max=projection.outcomes - 1)

    def reader_of(place_R: Tensor) -> Reader:
        return lambda softmax_BV, rows: projection.at(softmax_BV, ids_NK[place_R[rows]])

    entries = len(projection.token_Z)
    return AcrossPart(term.kind, 1.0, chunks, partial(loss, projection), reader=reader_of, entries=entries)


def _projected_kl(projection: Projection, seen: Seen) -> Tensor:
    q_nK = seen.sum_of_unit(seen.read) / seen.units.tokens_N.clamp(min=1)[:, None]
    return _kl_to_row(projection, seen, q_nK)


def _byte_kl(projection: Projection, seen: Seen) -> Tensor:
    here_n = torch.arange(len(seen.log_prob_n), device=seen.log_prob_n.device)
    first_n = here_n - (seen.units.tokens_N - 1).clamp(min=0)
    return _kl_to_row(projection, seen, seen.read[first_n])


def _kl_to_row(projection: Projection, seen: Seen, q_nK: Tensor) -> Tensor:
    """Ids that no token of the student is projected onto belong to all else."""
    real_nK = projection.reaches(seen.rows.ids_TK) & (seen.rows.log_probs_TK > -torch.inf)
    return coarse_forward_kl(seen.rows.log_probs_TK.exp(), q_nK, real_CK=real_nK)
