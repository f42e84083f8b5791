"""A teacher of another tokenizer on the held-out documents: bits per byte are all that it has in common with its student."""

from dataclasses import dataclass

import torch

from limbeck.data.counterpart import counterpart
from limbeck.evals.reference import reads_alike, teacher_reference
from limbeck.spec.recipe import Recipe
from limbeck.teachers.huggingface import Teacher
from limbeck.train.texts import Texts


@dataclass(frozen=True)
class TeacherApart:
    """Measured in its own tokens."""

    teacher: str
    bits_per_byte: float


def teacher_apart(recipe: Recipe, texts: Texts, *, device: torch.device, teacher: Teacher | None) -> TeacherApart | None:
    """The teacher beside a student of other tokens; kept in the user cache. `teacher` is the loaded one if there is one.

    None where the two read alike, where a document cannot be told in the teacher's tokens, of chats (whose counted bytes are
    the student's), and where the teacher has no plain head.
    """
    if recipe.teacher is None or texts.across is None or texts.files is None or reads_alike(texts.files, texts.heldout):
        return None
    if texts.heldout.has_masks:
        return None
    found = counterpart(texts.heldout, texts=recipe.data.heldout, student=texts.tokenizer, teacher=texts.across.tokenizer)
    if found.lost:
        return None
    reference = teacher_reference(recipe.teacher, found.tokens, device=teacher.device if teacher else device, teacher=teacher)
    return None if reference is None else TeacherApart(reference.teacher, reference.bits_per_byte)
