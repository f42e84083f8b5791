"""From the spec of a student to the student, initialised."""

import torch

from limbeck.spec.student import Student
from limbeck.students.decoder import Decoder
from limbeck.students.initialise import initialise


def build(spec: Student, *, vocab_size: int, seed: int) -> Decoder:
    """The student on the CPU in float32; the same seed gives the same weights, and the global generator isn't touched."""
    with torch.device("meta"):  # torch's own initialisation, which would draw global random numbers, does nothing here
        student = Decoder(spec.layout, vocab_size=vocab_size)
    student.to_empty(device="cpu")
    initialise(student, seed=seed)
    return student
