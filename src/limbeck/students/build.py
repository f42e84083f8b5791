"""From the spec of a student to the student, initialised."""

import torch

from limbeck.spec.student import Student, UpcycledStudent
from limbeck.students.decoder import Decoder
from limbeck.students.initialise import initialise
from limbeck.students.start import begin_with
from limbeck.students.upcycle import upcycle


def build(spec: Student, *, vocab_size: int, seed: int, initial_weights: str | None = None) -> Decoder:
    """The student on the CPU in float32; the same seed gives the same weights, and the global generator isn't touched.

    With `initial_weights`, a run or folder, it begins with those: `SpecError` where they are another student's.
    """
    if initial_weights is not None:
        return begin_with(initial_weights, spec, vocab_size=vocab_size, key="initial_weights")
    if isinstance(spec, UpcycledStudent):
        return upcycle(_dense(spec, vocab_size=vocab_size, seed=seed), spec, seed=seed)
    with torch.device("meta"):  # torch's own initialisation, which would draw global random numbers, does nothing here
        student = Decoder(spec.layout, vocab_size=vocab_size)
    student.to_empty(device="cpu")
    initialise(student, seed=seed)
    return student


def _dense(spec: UpcycledStudent, *, vocab_size: int, seed: int) -> Decoder:
    """The dense student that is upcycled: from its run or folder, or at random."""
    if spec.weights is None:
        return build(spec.dense, vocab_size=vocab_size, seed=seed)
    return begin_with(spec.weights, spec.dense, vocab_size=vocab_size, key="student.weights")
