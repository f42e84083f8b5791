"""What terms across tokenizers know of the two vocabularies, on the device: made once for a run.

Shapes: S the student's tokens, T the teacher's, O outcomes onto which the student's tokens are projected, Z entries.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.data.first_bytes import NONE, OUTCOMES, begins_anew, first_bytes
from limbeck.data.vocabulary_pair import VocabularyPair
from limbeck.errors import SpecError
from limbeck.spec.across_tokenizers import ByteKL, ProjectedKL
from limbeck.spec.objective import Objective, terms

FIRST_SHARE, NEXT_SHARE = 0.9, 0.1
"""Of the pieces of a token that the teacher splits (X-Token, arXiv 2605.21699): 0.9, 0.09, 0.009, scaled to sum to 1."""


@dataclass(frozen=True, eq=False)
class Projection:
    """A sparse map of the student's tokens onto outcomes: each token's weights sum to 1, or are none."""

    first_O: Tensor
    """int64 [O + 1]: the first of each outcome's entries, and their number."""
    token_Z: Tensor
    """int64, by outcome."""
    weight_Z: Tensor
    """float32."""

    @property
    def outcomes(self) -> int:
        """O."""
        return len(self.first_O) - 1

    def at(self, probs_BV: Tensor, ids_BK: Tensor) -> Tensor:
        """The probabilities of some outcomes, [B, K]. Of the entries, those of all outcomes that are named are visited."""
        named_U, place_BK = torch.unique(ids_BK, return_inverse=True)
        start_U, length_U = self.first_O[named_U], self.first_O[named_U + 1] - self.first_O[named_U]
        outcome_Z = torch.repeat_interleave(length_U)
        entry_Z = torch.arange(len(outcome_Z), device=ids_BK.device) + (start_U - length_U.cumsum(0) + length_U)[outcome_Z]
        rows = len(probs_BV)
        parts_BZ = probs_BV.gather(1, self.token_Z[entry_Z].expand(rows, -1)) * self.weight_Z[entry_Z].to(probs_BV.dtype)
        sums_BU = parts_BZ.new_zeros(rows, len(named_U)).scatter_add(1, outcome_Z.expand(rows, -1), parts_BZ)
        return sums_BU.gather(1, place_BK)

    def reaches(self, ids: Tensor) -> Tensor:
        """bool, in the shape of the ids: some token has a weight on it; none on those that the map does not know."""
        known = ids.clamp(max=self.outcomes - 1)
        return (self.first_O[known + 1] > self.first_O[known]) & (ids < self.outcomes)


@dataclass(frozen=True, eq=False)
class Across:
    """A pair of vocabularies, and what the rows say of the teacher."""

    distribution: str
    """Of the signal: none, last, mean, index or bytes."""
    special_S: Tensor
    """bool: stands for no text; after it a chunk needs no boundary."""
    bounding_S: Tensor
    """float32, 1 where the token begins with white space or ends the document, else 0."""
    equal_T: Tensor
    """int64 [T + 1]: the student's token of equal bytes or role, or -1. The last is for ids beyond the tokenizer's."""
    unmatched_S: Tensor
    """int64: the student's tokens that the teacher has no equal of."""
    matched_share: float
    """Of the teacher's tokens, those that have an equal."""
    pieces: Projection | None
    """Onto the teacher's tokens; of `projected_kl`."""
    bytes: Projection | None
    """Onto 256 bytes and the end; of `byte_kl`."""


def prepare_across(
    objective: Objective,
    pair: VocabularyPair,
    *,
    distribution: str,
    pieces: tuple[np.ndarray, np.ndarray] | None = None,
    device: torch.device | str = "cpu",
) -> Across:
    """The maps that the objective's terms read. `distribution` is `signal.distribution`.

    `pieces` are `limbeck.data.vocabulary_pair.pieces`: how the teacher's tokenizer writes each of the student's tokens.
    `projected_kl` needs them.
    """
    found = [weighted.term for weighted in terms(objective)]
    teachers = len(pair.teacher.content)
    equal_T = np.full(teachers + 1, -1, dtype=np.int64)
    matched = np.flatnonzero(pair.equal_S >= 0)
    equal_T[pair.equal_S[matched]] = matched
    projection, of_bytes = None, None
    if any(isinstance(term, ProjectedKL) for term in found):
        if pieces is None:
            raise SpecError("objective projected_kl needs the teacher's tokenizer, to split the student's tokens: name it")
        projection = _projection(*piece_weights(pair.equal_S, pieces), shape=(teachers, len(pair.equal_S)), device=device)
    if any(isinstance(term, ByteKL) for term in found):
        first_S = first_bytes(pair.student)
        tokens = np.flatnonzero(first_S != NONE)
        entries = first_S[tokens], tokens, np.ones(len(tokens))
        of_bytes = _projection(*entries, shape=(OUTCOMES, len(first_S)), device=device)
    return Across(
        distribution=distribution,
        special_S=torch.from_numpy(np.asarray(pair.student.special_V)).to(device),
        bounding_S=torch.from_numpy(begins_anew(pair.student)).float().to(device),
        equal_T=torch.from_numpy(equal_T).to(device),
        unmatched_S=torch.from_numpy(np.flatnonzero(pair.equal_S < 0)).to(device),
        matched_share=len(matched) / teachers,
        pieces=projection,
        bytes=of_bytes,
    )


def piece_weights(equal_S: np.ndarray, pieces: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(outcome, token, weight) of each entry: 1 on an equal token; on the pieces of others 0.9, 0.09, ..., summing to 1."""
    offsets, ids = pieces
    lengths_S = np.diff(offsets)
    token_Z = np.repeat(np.arange(len(lengths_S)), lengths_S)
    place_Z = np.arange(len(ids)) - offsets[token_Z]
    weight_Z = FIRST_SHARE * NEXT_SHARE ** place_Z.astype(np.float64)
    weight_Z /= np.bincount(token_Z, weights=weight_Z, minlength=len(lengths_S))[token_Z]
    split_Z = equal_S[token_Z] < 0
    equal = np.flatnonzero(equal_S >= 0)
    return (
        np.concatenate([equal_S[equal], ids[split_Z]]),
        np.concatenate([equal, token_Z[split_Z]]),
        np.concatenate([np.ones(len(equal)), weight_Z[split_Z]]),
    )


def _projection(
    outcome_Z: np.ndarray, token_Z: np.ndarray, weight_Z: np.ndarray, *, shape: tuple[int, int], device: torch.device | str
) -> Projection:
    """The entries by outcome, then token; those of one token and outcome (a piece that comes twice) are one."""
    outcomes, tokens = shape
    entry_Z, which = np.unique(outcome_Z * tokens + token_Z, return_inverse=True)
    first_O = np.searchsorted(entry_Z, np.arange(outcomes + 1) * tokens)
    weights_Z = torch.from_numpy(np.bincount(which, weights=weight_Z, minlength=len(entry_Z))).float()
    return Projection(*(x.to(device) for x in (torch.from_numpy(first_O), torch.from_numpy(entry_Z % tokens), weights_Z)))
