"""Orthogonal matching pursuit of many targets at once.

Each step takes the atom that has the largest product with what is left of a target, then projects the target on all atoms taken
so far, by a Gram-Schmidt basis. The products with all atoms are nearly the whole cost, 2 B M E FLOPs a step. They only choose,
so they may be in bfloat16; projections are in float32.

Legend: B targets, M atoms, E their width, K atoms taken.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ENOUGH = 1e-5
"""What is left, as a share of the target, below which no further atom is taken: rounding, in float32."""


@dataclass(frozen=True)
class Pursued:
    """target = sum of coefficients times atoms + rest."""

    chosen_BK: Tensor
    """int64: which atoms, in the order in which they were taken."""
    coefficients_BK: Tensor
    """float32; zero where a target was reached before."""
    residual_BK: Tensor
    """float32: the norm of what is left after each step, which never rises."""


def matching_pursuit(target_BE: Tensor, atoms_ME: Tensor, *, atoms: int, choosing: torch.dtype = torch.float32) -> Pursued:
    """Approximate each target by `atoms` of the atoms (at most as many as there are, or as they are wide), of unit norm.

    `choosing` is the precision of the products by which atoms are chosen.
    """
    atoms = min(atoms, *atoms_ME.shape)
    count, width = target_BE.shape
    seeking_ME = atoms_ME.to(choosing)
    basis_BKE = target_BE.new_zeros(count, atoms, width)
    triangle_BKK = torch.eye(atoms, device=target_BE.device).repeat(count, 1, 1)
    chosen_BK = torch.zeros(count, atoms, dtype=torch.int64, device=target_BE.device)
    residual_BK = target_BE.new_zeros(count, atoms)
    rest_BE, whole_B = target_BE.clone(), target_BE.norm(dim=1)
    for step in range(atoms):
        product_BM = (rest_BE.to(choosing) @ seeking_ME.T).abs()
        product_BM.scatter_(1, chosen_BK[:, :step], -1)  # none is taken twice
        chosen_BK[:, step] = product_BM.argmax(1)
        new_BE, along_BK = _orthogonal(atoms_ME[chosen_BK[:, step]], basis_BKE[:, :step])
        norm_B = new_BE.norm(dim=1)
        useful_B = (norm_B > ENOUGH) & (rest_BE.norm(dim=1) > ENOUGH * whole_B)
        basis_BKE[:, step] = torch.where(useful_B[:, None], new_BE / norm_B[:, None].clamp(min=ENOUGH), 0)
        triangle_BKK[:, :step, step] = torch.where(useful_B[:, None], along_BK, 0)
        triangle_BKK[:, step, step] = torch.where(useful_B, norm_B, 1)
        rest_BE = _orthogonal(rest_BE, basis_BKE[:, step : step + 1])[0]
        residual_BK[:, step] = rest_BE.norm(dim=1)
    projected_BK1 = basis_BKE @ target_BE[:, :, None]
    coefficients_BK1 = torch.linalg.solve_triangular(triangle_BKK, projected_BK1, upper=True)
    return Pursued(chosen_BK, coefficients_BK1[:, :, 0], residual_BK)


def _orthogonal(vector_BE: Tensor, basis_BKE: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of vectors beside a basis, and their parts along it; twice, since once leaves rounding behind."""
    parts_BK = vector_BE.new_zeros(len(vector_BE), basis_BKE.shape[1])
    for _ in range(2):
        more_BK = (basis_BKE @ vector_BE[:, :, None])[:, :, 0]
        vector_BE = vector_BE - (more_BK[:, None] @ basis_BKE)[:, 0]
        parts_BK = parts_BK + more_BK
    return vector_BE, parts_BK
