"""Who writes in an on-policy run, and after what: opened and checked before the first step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import SpecError
from limbeck.evals.chat import stops_of
from limbeck.spec.on_policy import ServerEngine, TransformersEngine
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.students.decoder import Decoder
from limbeck.students.model import StudentModel
from limbeck.students.pretrained import PretrainedStudent
from limbeck.students.registered import around
from limbeck.teachers.huggingface import Teacher
from limbeck.train.completion_server import ServerSampler
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
    sizes: dict[str, Any] = {"vocab_size": recipe.student.vocab_size, "max_new_tokens": spec.max_new_tokens}
    here = spec.engine if isinstance(spec.engine, TransformersEngine) else TransformersEngine()
    own: dict[str, Any] = {**sizes, "batch_size": here.batch_size, "device": device}
    samplers: dict[Writer, Sampler] = {}
    if spec.sources.teacher:
        assert teacher is not None
        there = {**own, "device": teacher.device}
        samplers["teacher"] = TransformersSampler(teacher.model, tokenizer, dtype=torch.float32, **there)  # in its own dtype
    if spec.sources.student and isinstance(spec.engine, TransformersEngine):
        samplers["student"] = TransformersSampler(_generating(student, recipe), tokenizer, dtype=dtype, **own)
    elif spec.sources.student and isinstance(spec.engine, ServerEngine):
        assert recipe.student.vocab_size is not None
        stops = stops_of(_generating(student, recipe), tokenizer, vocab_size=recipe.student.vocab_size)
        server = ServerSampler(spec.engine, stops=stops, **sizes)
        server.check(prompts.prompt(0))
        samplers["student"] = server
    return Writers(prompts, samplers)


def _generating(student: StudentModel, recipe: Recipe) -> Any:
    """The student's own modules as a model of transformers."""
    if isinstance(student, PretrainedStudent):
        return student.causal_lm
    assert isinstance(student, Decoder) and not isinstance(recipe.student, HuggingFaceStudent)
    exact = student.layout.exact_length
    if exact is not None and recipe.data.sequence_length > exact:
        raise SpecError(
            f"data.sequence_length={recipe.data.sequence_length} is more than student.ntk_length={exact}, past which every "
            "token changes how those before it are read: what was written would be read by another student; lower it"
        )
    return around(student, recipe.student)
