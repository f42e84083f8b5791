"""From the spec of a student to the student, initialised."""

from pathlib import Path

import torch

from limbeck.errors import SpecError
from limbeck.spec.student import HuggingFaceStudent, LaidOutStudent, Student, UpcycledStudent
from limbeck.students import hf
from limbeck.students.decoder import Decoder
from limbeck.students.initialise import initialise
from limbeck.students.model import StudentModel
from limbeck.students.pretrained import load_pretrained
from limbeck.students.upcycle import upcycle


def build(spec: Student, *, vocab_size: int, seed: int) -> StudentModel:
    """The student on the CPU in float32; the same seed gives the same weights, and the global generator isn't touched."""
    if not isinstance(spec, HuggingFaceStudent):
        return build_decoder(spec, vocab_size=vocab_size, seed=seed)
    student = load_pretrained(spec, seed=seed)
    if len(student.head_VD) != vocab_size:
        raise SpecError(f"student.model={spec.model} has {len(student.head_VD)} logits, not {vocab_size}: remove vocab_size")
    return student


def build_decoder(spec: LaidOutStudent, *, vocab_size: int, seed: int) -> Decoder:
    """The same of a student that Limbeck builds itself."""
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
        return build_decoder(spec.dense, vocab_size=vocab_size, seed=seed)
    folder = Path(spec.weights)
    dense, _, its_vocabulary = hf.load(folder / "student" if (folder / "student").is_dir() else folder)
    if dense.layout != spec.dense.layout or its_vocabulary != vocab_size:
        raise SpecError(f"student.weights={spec.weights} holds another student than student.dense: copy its recipe's student")
    return dense
