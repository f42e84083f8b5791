"""A student under evaluation, read the same way as a teacher."""

import torch
from torch import Tensor

from limbeck.compute import autocast
from limbeck.students.model import StudentModel


class StudentReader:
    """A `limbeck.teachers.score.Reader` around a student in training; computes in `dtype`."""

    def __init__(self, student: StudentModel, *, device: torch.device, dtype: torch.dtype) -> None:
        self.student, self.device, self.dtype = student, device, dtype
        self.head_VE: Tensor | None = student.head_VD.detach().to(dtype) if student.softcap is None else None

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Hidden states after the final norm."""
        with autocast(self.dtype, self.device):
            return self.student(tokens_BT.to(self.device)).hidden_BTD.to(self.dtype)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Hidden states times the head, under the softcap."""
        return self.student.logits(self.hidden(tokens_BT))
