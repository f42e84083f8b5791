"""Final hidden states of student and teacher, compared position by position (Minitron, arXiv 2407.14679, section 3).

The student's pass through a learned linear map where the widths differ. It trains with the student, is saved in checkpoints
and is no part of the student. Shapes: T positions, D student's width, E teacher's width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.spec.objective import HiddenStates


def build_projection(*, student_width: int, teacher_width: int, seed: int) -> nn.Linear | None:
    """The map to the teacher's width, normal with deviation 1 / sqrt(student's width); None where the widths are the same."""
    if student_width == teacher_width:
        return None
    projection = nn.Linear(student_width, teacher_width, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        projection.weight.normal_(std=student_width**-0.5, generator=generator)
    return projection


def hidden_distance(term: HiddenStates, *, hidden_TE: Tensor, teacher_TE: Tensor) -> Tensor:
    """1 - cos, or the mean over the width of the squared difference; float32 or wider, no mean over positions.

    A position where either vector is zero has no angle and counts as at right angles: 1.
    """
    dtype = torch.promote_types(hidden_TE.dtype, torch.float32)
    hidden_TE, teacher_TE = hidden_TE.to(dtype), teacher_TE.detach().to(dtype)
    if term.distance == "cosine":
        return 1 - F.cosine_similarity(hidden_TE, teacher_TE, dim=-1, eps=1e-12)
    return (hidden_TE - teacher_TE).square().mean(-1)
