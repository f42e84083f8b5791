"""From the spec of a student to the student, initialised."""

import torch

from limbeck.spec.student import Olmo3Student, Student
from limbeck.students.olmo3 import Olmo3


def build(spec: Student, *, vocab_size: int, seed: int) -> Olmo3:
    """The student on the CPU in float32; the same seed gives the same weights, and the global generator isn't touched."""
    match spec:
        case Olmo3Student():
            with torch.device("meta"):  # torch's own initialisation, which would draw global random numbers, does nothing here
                student = Olmo3(spec, vocab_size=vocab_size)
            student.to_empty(device="cpu")
            student.initialise(seed=seed)
            return student
