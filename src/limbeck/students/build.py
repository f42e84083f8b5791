"""From the spec of a student to the student, initialised."""

from torch import nn

from limbeck.errors import SpecError
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.student import LaidOutStudent, Student
from limbeck.spec.upcycled_student import UpcycledStudent
from limbeck.students.decoder import Decoder, empty_decoder
from limbeck.students.initialise import initialise
from limbeck.students.model import StudentModel
from limbeck.students.pretrained import load_empty, load_pretrained
from limbeck.students.start import begin_with
from limbeck.students.upcycle import upcycle


def build(spec: Student, *, vocab_size: int, seed: int, initial_weights: str | None = None) -> StudentModel:
    """The student on the CPU in float32; the same seed gives the same weights, and the global generator isn't touched.

    With `initial_weights`, a run or folder, one that Limbeck builds itself begins with those: `SpecError` where they are
    another student's.
    """
    if not isinstance(spec, HuggingFaceStudent):
        return build_decoder(spec, vocab_size=vocab_size, seed=seed, initial_weights=initial_weights)
    student = load_pretrained(spec, seed=seed)
    if len(student.head_VD) != vocab_size:
        raise SpecError(f"student.model={spec.model} has {len(student.head_VD)} logits, not {vocab_size}: remove vocab_size")
    return student


def build_decoder(spec: LaidOutStudent, *, vocab_size: int, seed: int, initial_weights: str | None = None) -> Decoder:
    """The same of a student that Limbeck builds itself."""
    if initial_weights is not None:
        return begin_with(initial_weights, spec, vocab_size=vocab_size, key="initial_weights")
    if isinstance(spec, UpcycledStudent):
        return upcycle(_dense(spec, vocab_size=vocab_size, seed=seed), spec, seed=seed)
    student = empty_decoder(spec.layout, vocab_size=vocab_size)
    student.to_empty(device="cpu")
    initialise(student, seed=seed)
    return student


def _dense(spec: UpcycledStudent, *, vocab_size: int, seed: int) -> Decoder:
    """The dense student that is upcycled: from its run or folder, or at random."""
    if spec.weights is None:
        return build_decoder(spec.dense, vocab_size=vocab_size, seed=seed)
    return begin_with(spec.weights, spec.dense, vocab_size=vocab_size, key="student.weights")


def build_empty(spec: Student, *, vocab_size: int) -> nn.Module:
    """The student on the meta device: shapes, names and what learns, without weights and without drawing random numbers."""
    return load_empty(spec) if isinstance(spec, HuggingFaceStudent) else empty_decoder(spec.layout, vocab_size=vocab_size)
