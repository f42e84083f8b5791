"""Rows for tokens that a model has not had: four ways to make them, of the rows that it has.

- `mean`: the mean of the rows of the pieces in which the model's old tokenizer writes the token (FVT).
- `omp` (tokensurgeon, arXiv 2506.06607): in the space of a donor, which has the new tokenizer, the token is approximated by a
  few tokens that both vocabularies have (orthogonal matching pursuit); the same coefficients then combine the model's own rows.
- `focus` (FOCUS, arXiv 2305.14481): weights are the sparsemax of the cosines to the shared tokens in the donor's space, where
  the paper trains a small space of its own on text.
- `random`: normal, with the mean and the deviation of each dimension of the model's rows.

Legend: V rows of the model's old matrix, N tokens to make, M shared tokens, D the model's width, E the donor's, K atoms.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.compute import pick_dtype
from limbeck.progress import progress
from limbeck.surgery.matching_pursuit import matching_pursuit

AT_ONCE = 1024
"""Tokens whose products with all shared tokens are held together: 2 GiB at a vocabulary of 260,000, float32 and bfloat16."""
CLOSEST = 2048
"""Shared tokens that may have weight in `focus`."""


def mean_rows(old_VD: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """float32 [N, D]: the mean of the old rows of each token's pieces; of all rows where it has none."""
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in pieces])])[:-1]
    flat = torch.tensor([one for ids in pieces for one in ids], dtype=torch.int64)
    rows_ND = F.embedding_bag(flat, old_VD.float(), torch.from_numpy(offsets.astype(np.int64)), mode="mean")
    rows_ND[torch.tensor([not ids for ids in pieces])] = old_VD.float().mean(0)
    return rows_ND


def random_rows(old_VD: Tensor, count: int, *, seed: int) -> Tensor:
    """float32 [count, D]."""
    old_VD = old_VD.float()
    drawn_ND = torch.randn(count, old_VD.shape[1], generator=torch.Generator().manual_seed(seed))
    return old_VD.mean(0) + old_VD.std(0) * drawn_ND


def omp_rows(
    shared_MD: Tensor, *, donor_shared_ME: Tensor, donor_new_NE: Tensor, atoms: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """float32 [N, D] and [N]: the rows, and what is left of each donor's row, as a share of its norm."""
    rows, left = [], []
    choosing = pick_dtype("auto", device)
    atoms_ME, shared_MD = F.normalize(donor_shared_ME.float(), dim=1).to(device), shared_MD.float().to(device)
    inverse_M = (1 / donor_shared_ME.float().norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)).to(device)
    with progress("approximating new tokens", total=len(donor_new_NE)) as advance:
        for donor_BE in donor_new_NE.split(AT_ONCE):
            target_BE = donor_BE.float().to(device)
            found = matching_pursuit(target_BE, atoms_ME, atoms=atoms, choosing=choosing)
            weights_BK = found.coefficients_BK * inverse_M[found.chosen_BK]
            rows.append(torch.einsum("bk,bkd->bd", weights_BK, shared_MD[found.chosen_BK]).cpu())
            left.append((found.residual_BK[:, -1] / target_BE.norm(dim=1).clamp(min=1e-30)).cpu())
            advance(len(donor_BE))
    return torch.cat(rows), torch.cat(left)


def focus_rows(
    shared_MD: Tensor, *, donor_shared_ME: Tensor, donor_new_NE: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """float32 [N, D], and int64 [N], how many shared tokens each is made of."""
    rows, counts = [], []
    shared_MD = shared_MD.float().to(device)
    unit_ME = F.normalize(donor_shared_ME.float(), dim=1).to(device)
    with progress("weighing new tokens", total=len(donor_new_NE)) as advance:
        for donor_BE in donor_new_NE.split(AT_ONCE):
            cosine_BM = F.normalize(donor_BE.float().to(device), dim=1) @ unit_ME.T
            closest = cosine_BM.topk(min(CLOSEST, cosine_BM.shape[1]), dim=1)
            weights_BK = sparsemax(closest.values)
            width = int((weights_BK > 0).sum(1).max())
            chosen_BK = closest.indices[:, :width]
            rows.append(torch.einsum("bk,bkd->bd", weights_BK[:, :width], shared_MD[chosen_BK]).cpu())
            counts.append((weights_BK > 0).sum(1).cpu())
            advance(len(donor_BE))
    return torch.cat(rows), torch.cat(counts)


def sparsemax(sorted_BK: Tensor) -> Tensor:
    """The nearest point of the simplex to each row, whose values must descend (Martins and Astudillo, arXiv 1602.02068)."""
    rank_K = torch.arange(1, sorted_BK.shape[1] + 1, device=sorted_BK.device)
    sums_BK = sorted_BK.cumsum(1)
    size_B = (1 + rank_K * sorted_BK > sums_BK).sum(1, keepdim=True)
    threshold_B = (sums_BK.gather(1, size_B - 1) - 1) / size_B
    return (sorted_BK - threshold_B).clamp(min=0)
