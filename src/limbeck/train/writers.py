"""Who writes in an on-policy run, and after what: opened and checked before the first step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import Tokenizer
from limbeck.spec.recipe import Recipe
from limbeck.spec.student import HuggingFaceStudent
from limbeck.students.decoder import Decoder
from limbeck.students.model import StudentModel
from limbeck.students.pretrained import PretrainedStudent
from limbeck.students.registered import around
from limbeck.teachers.huggingface import Teacher
from limbeck.train.prompts import PromptStream, open_prompts
from limbeck.train.rollouts import Sampler, TransformersSampler, Writer


@dataclass(frozen=True)
class Writers:
    """The prompts, and what continues them."""

    prompts: PromptStream
    samplers: Mapping[Writer, Sampler]


def open_writers(
    recipe: Recipe,
    *,
    train: TokenStore,
    tokenizer: Tokenizer,
    student: StudentModel,
    teacher: Teacher | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Writers | None:
    """Of a resolved recipe; None where it reads texts alone. `LimbeckError` where prompts are none or do not fit."""
    spec = recipe.on_policy
    if spec is None:
        return None
    prompts = open_prompts(recipe, train, tokenizer)
    common: dict[str, Any] = {"vocab_size": recipe.student.vocab_size, "max_new_tokens": spec.max_new_tokens}
    common |= {"batch_size": spec.engine.batch_size, "device": device}
    samplers: dict[Writer, Sampler] = {}
    if spec.sources.student:
        samplers["student"] = TransformersSampler(generating(student, recipe), tokenizer, dtype=dtype, **common)
    if spec.sources.teacher:
        assert teacher is not None
        samplers["teacher"] = TransformersSampler(teacher.model, tokenizer, dtype=torch.float32, **common)  # in its own dtype
    return Writers(prompts, samplers)


def generating(student: StudentModel, recipe: Recipe) -> Any:
    """The student's own modules as a model of transformers."""
    if isinstance(student, PretrainedStudent):
        return student.causal_lm
    assert isinstance(student, Decoder) and not isinstance(recipe.student, HuggingFaceStudent)
    return around(student, recipe.student)
