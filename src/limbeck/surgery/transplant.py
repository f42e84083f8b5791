"""Give a causal language model another tokenizer: rows of its input and output matrices for a new vocabulary.

A token that both vocabularies have keeps its row: equal bytes, or the same role (end, end of turn, start), or a special token
of the same name. The rows of the others are made (`limbeck.surgery.new_rows`), of an untied model in each matrix by itself; a
tied model stays tied, and its one matrix is treated as the input's. Ids that no token has get the mean row.

Legend: V old ids, W new ids, D the model's width, E the donor's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data.token_bytes import TokenBytes, token_bytes
from limbeck.data.tokenizers import Tokenizer
from limbeck.data.vocabulary_pair import equal_tokens, ids_by_bytes, pieces, roles
from limbeck.errors import SpecError
from limbeck.surgery.new_rows import focus_rows, mean_rows, omp_rows, random_rows

Method = Literal["omp", "mean", "focus", "random"]
OF_DONORS = ("omp", "focus")
"""Methods that need a donor."""
MATRICES = ("input", "output")


@dataclass(frozen=True)
class Asked:
    """How rows are made."""

    method: Method
    atoms: int = 64
    """Of `omp`: the most shared tokens that one is made of."""
    rescale: bool = False
    """Made rows are multiplied by one number, so that their mean norm is that of the copied rows."""
    seed: int = 0
    """Of `random`."""


@dataclass(frozen=True)
class Donor:
    """A model that has the new tokenizer."""

    model: Any
    tokens: TokenBytes


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Where each of the new tokens has its row from."""

    old: TokenBytes
    new: TokenBytes
    old_W: np.ndarray
    """int64: the old token whose row is copied, -1 where there is none."""
    size: int
    """Rows of the new matrices, W: at least as many as tokens, and as the donor has."""

    @property
    def made(self) -> np.ndarray:
        """int64: tokens whose rows are made."""
        is_token = np.array([bool(content) for content in self.new.spelled])
        return np.flatnonzero((self.old_W < 0) & is_token)


@dataclass(frozen=True)
class Norms:
    """Of the rows of one matrix."""

    copied: float
    """The mean of them."""
    made: float | None
    """The mean of them, after rescaling where that was asked for; None where none is made."""
    factor: float
    """That made rows were multiplied by; 1 where they were not."""

    @property
    def ratio(self) -> float | None:
        """Of made to copied."""
        return None if self.made is None else self.made / self.copied


@dataclass(frozen=True)
class Transplanted:
    """What became of the model, which is changed in place."""

    vocabulary: Vocabulary
    tied: bool
    norms: Mapping[str, Norms]
    """By matrix: `input`, and of an untied model `output`."""
    left: Mapping[str, float]
    """Of `omp`, by matrix: the mean share of a donor's row that its atoms leave. Of `focus`: how many tokens one is made of."""


def vocabulary_of(old: Tokenizer, new: Tokenizer, *, rows: int, donor_rows: int = 0) -> Vocabulary:
    """Which tokens are copied, of a model that has so many `rows`. `DataError` where a tokenizer has no byte-exact form."""
    of_old, of_new = token_bytes(old), token_bytes(new)
    old_W = equal_tokens(of_new, of_old)
    named = {of_old.spelled[index]: index for index in np.flatnonzero(of_old.special_V).tolist() if of_old.spelled[index]}
    for index in np.flatnonzero(of_new.special_V & (old_W < 0)).tolist():
        old_W[index] = named.get(of_new.spelled[index], -1)
    for index, role in roles(of_new, of_old):  # one old token may have two roles: its row is copied for both
        if old_W[index] < 0:
            old_W[index] = role
    old_W[old_W >= rows] = -1
    return Vocabulary(of_old, of_new, old_W, max(len(of_new.content), donor_rows))


@torch.no_grad()
def transplant(
    model: Any, *, old: Tokenizer, new: Tokenizer, asked: Asked, donor: Donor | None, device: torch.device
) -> Transplanted:
    """Change a model's matrices to those of the `new` tokenizer, in place. `SpecError` for what cannot be."""
    require_plain(model, asked, donor)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    old_matrices = _matrices(model, tied=tied)
    found = vocabulary_of(
        old, new, rows=len(old_matrices["input"]), donor_rows=0 if donor is None else len(_matrices(donor.model)["input"])
    )
    norms, left, new_matrices = {}, {}, {}
    for name, old_VD in old_matrices.items():
        made_ND, left_N = _made(found, old_VD, name, old=old, asked=asked, donor=donor, device=device)
        new_matrices[name], norms[name] = _filled(found, old_VD, made_ND, rescale=asked.rescale)
        if left_N is not None and len(left_N):
            left[name] = float(left_N.double().mean())
    model.resize_token_embeddings(found.size, mean_resizing=False)
    for name, weight_WD in _matrices(model, tied=tied).items():
        weight_WD.copy_(new_matrices[name])
    _configure(model, new, found.new)
    return Transplanted(found, tied, norms, left)


def require_plain(model: Any, asked: Asked, donor: Donor | None) -> None:
    """`SpecError` where a method lacks its donor, or the vocabulary is in more than the two matrices."""
    if asked.method in OF_DONORS and donor is None:
        raise SpecError(
            f"--method {asked.method} looks for like tokens in the space of a model that has the new tokenizer: name one with "
            "--donor, or take --method mean"
        )
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise SpecError(
            f"{type(model).__name__} has no output matrix alone (without a bias): it cannot be given another tokenizer"
        )
    known = {id(model.get_input_embeddings().weight), id(head.weight)}
    rows = len(head.weight)
    others = [name for name, x in model.named_parameters() if rows in x.shape and id(x) not in known and rows > 1024]
    if others:
        raise SpecError(f"{others[0]} is by token, too, which is not recognised: this model cannot be given another tokenizer")


def _matrices(model: Any, *, tied: bool = False) -> dict[str, Tensor]:
    found = {"input": model.get_input_embeddings().weight, "output": model.get_output_embeddings().weight}
    return {name: weight.detach() for name, weight in found.items() if not (tied and name == "output")}


def _made(
    found: Vocabulary, old_VD: Tensor, name: str, *, old: Tokenizer, asked: Asked, donor: Donor | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    made = found.made
    if not len(made):
        return old_VD.new_zeros(0, old_VD.shape[1]), None
    if asked.method == "random":
        return random_rows(old_VD, len(made), seed=asked.seed + MATRICES.index(name)), None
    if asked.method == "mean":
        return mean_rows(old_VD, _pieces(found, old)), None
    assert donor is not None, "require_plain"
    donor_WE = _matrices(donor.model)[name]
    return _by_donor(found, old_VD, donor_WE, asked=asked, device=device)


def _by_donor(
    found: Vocabulary, old_VD: Tensor, donor_WE: Tensor, *, asked: Asked, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Tokens without a row of the donor's get a random one."""
    shared = np.flatnonzero((found.old_W >= 0) & ~found.new.special_V & (np.arange(len(found.old_W)) < len(donor_WE)))
    if not len(shared):
        raise SpecError("the two tokenizers have no token in common to make others of: take --method mean")
    shared_MD, donor_shared_ME = old_VD[torch.from_numpy(found.old_W[shared])], donor_WE[torch.from_numpy(shared)]
    known_N = torch.from_numpy(found.made < len(donor_WE))
    known_N[known_N.clone()] = donor_WE[torch.from_numpy(found.made)[known_N]].norm(dim=1) > 0
    rows_ND = random_rows(old_VD, len(found.made), seed=asked.seed)
    donor_new_NE = donor_WE[torch.from_numpy(found.made)[known_N]]
    if asked.method == "omp":
        rows_ND[known_N], told_N = omp_rows(
            shared_MD, donor_shared_ME=donor_shared_ME, donor_new_NE=donor_new_NE, atoms=asked.atoms, device=device
        )
    else:
        rows_ND[known_N], told_N = focus_rows(
            shared_MD, donor_shared_ME=donor_shared_ME, donor_new_NE=donor_new_NE, device=device
        )
    return rows_ND, told_N


def _filled(found: Vocabulary, old_VD: Tensor, made_ND: Tensor, *, rescale: bool) -> tuple[Tensor, Norms]:
    old_VD = old_VD.float()
    copied = np.flatnonzero(found.old_W >= 0)
    new_WD = old_VD.mean(0).repeat(found.size, 1)
    new_WD[torch.from_numpy(copied)] = old_VD[torch.from_numpy(found.old_W[copied])]
    norm = float(old_VD[torch.from_numpy(found.old_W[copied])].norm(dim=1).mean())
    if not len(made_ND):
        return new_WD, Norms(norm, None, 1.0)
    of_made = float(made_ND.norm(dim=1).mean())
    factor = norm / of_made if rescale else 1.0
    new_WD[torch.from_numpy(found.made)] = made_ND * factor
    return new_WD, Norms(norm, of_made * factor, factor)


def _pieces(found: Vocabulary, old: Tokenizer) -> list[list[int]]:
    """How the old tokenizer writes each token that is made; where that is no text by itself, the longest old tokens from its
    left, without bytes that the old tokenizer has no token for."""
    offsets, ids = pieces(found.new, old)
    by_bytes = ids_by_bytes(found.old)
    longest = max(map(len, by_bytes))
    written = []
    for index in found.made.tolist():
        own = ids[offsets[index] : offsets[index + 1]].tolist()
        written.append(own or _from_left(found.new.spelled[index], by_bytes, longest))
    return written


def _from_left(content: bytes, by_bytes: Mapping[bytes, int], longest: int) -> list[int]:
    found: list[int] = []
    while content:
        size = next((size for size in range(longest, 0, -1) if content[:size] in by_bytes), 1)
        found += [by_bytes[content[:size]]] if content[:size] in by_bytes else []
        content = content[size:]
    return found


def _configure(model: Any, new: Tokenizer, tokens: TokenBytes) -> None:
    """Ids of special tokens, for those who generate."""
    ends = list(dict.fromkeys(one for one in (tokens.end_id, tokens.end_of_turn_id) if one is not None))
    pad = new.backend.pad_token_id
    known = {"bos_token_id": new.backend.bos_token_id, "pad_token_id": pad if pad is not None else tokens.end_id}
    for config, end in (
        (model.config.get_text_config(), tokens.end_id),
        (model.generation_config, ends if ends[1:] else ends[0]),
    ):
        for key, value in {**known, "eos_token_id": end}.items():
            setattr(config, key, value)
