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

    map_OS: Tensor
    """float32, sparse (COO, coalesced)."""
    reached_O: Tensor
    """bool [O + 1]: some token has a weight on it. The last is for outcomes that the map does not know."""

    def apply(self, probs_BV: Tensor) -> Tensor:
        """The probabilities of all outcomes, [B, O]; a head's rows beyond the vocabulary have none."""
        map_OS = self.map_OS.to(probs_BV.dtype)
        return torch.sparse.mm(map_OS, probs_BV[:, : map_OS.shape[1]].T).T

    def reaches(self, ids: Tensor) -> Tensor:
        """bool, in the shape of the ids."""
        return self.reached_O[ids.clamp(max=len(self.reached_O) - 1)]


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
    places_2Z = torch.from_numpy(np.stack([outcome_Z, token_Z]))
    weights_Z = torch.from_numpy(weight_Z).float()
    map_OS = torch.sparse_coo_tensor(places_2Z, weights_Z, shape, check_invariants=True).coalesce()
    reached_O = torch.zeros(shape[0] + 1, dtype=torch.bool)
    reached_O[places_2Z[0]] = True
    return Projection(map_OS.to(device), reached_O.to(device))
