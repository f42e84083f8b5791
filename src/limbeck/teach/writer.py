"""A teacher that writes: in this process through transformers, or behind a server of completions."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from limbeck.compute import pick_device
from limbeck.data.tokenizers import Tokenizer
from limbeck.evals.chat import stops_of
from limbeck.spec.on_policy import ServerEngine, TransformersEngine
from limbeck.spec.teach_text import TeachText
from limbeck.spec.teacher import Context
from limbeck.teach.asks import Group
from limbeck.teachers.files import TeacherFiles, read_config
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.train.completion_server import ServerSampler
from limbeck.train.rollouts import Continuation, Sampler, TransformersSampler


class TextTeacher:
    """Draws groups of completions; one sampler for each effort, as their limits differ."""

    def __init__(
        self,
        samplers: Mapping[str | None, Sampler],
        *,
        identity: Mapping[str, Any],
        engine: Mapping[str, Any],
        longest: int | None,
        reads_padded: bool,
    ) -> None:
        self._samplers = samplers
        self.identity, self.engine = dict(identity), dict(engine)
        self.longest, self.reads_padded = longest, reads_padded

    def draw(self, group: Group, *, key: str) -> list[Continuation]:
        """A completion of each ask of a group, in their order."""
        return self._samplers[group.effort].draw([ask.prompt for ask in group.asks], key=key)


def open_teacher(spec: TeachText, files: TeacherFiles, tokenizer: Tokenizer) -> TextTeacher:
    """Load the teacher, or find what must be known of one that a server holds."""
    match spec.engine:
        case TransformersEngine():
            return _here(spec, tokenizer)
        case ServerEngine() as engine:
            return _served(spec, engine, files, tokenizer)


def _here(spec: TeachText, tokenizer: Tokenizer) -> TextTeacher:
    whole = spec.teacher.model_copy(update={"context": Context(window=1, overlap=0)})  # says how documents are scored
    teacher: Teacher = load_teacher(whole, device=pick_device(spec.device))
    assert isinstance(spec.engine, TransformersEngine)
    batch_size = spec.engine.batch_size
    samplers = {
        effort: TransformersSampler(
            teacher.model,
            tokenizer,
            vocab_size=teacher.vocab_size,
            max_new_tokens=spec.limit(effort),
            batch_size=batch_size,
            dtype=torch.float32,  # its products stay in its own dtype
            device=teacher.device,
            temperature=spec.temperature,
            top_p=spec.top_p,
        )
        for effort in spec.efforts or [None]
    }
    return TextTeacher(
        samplers,
        identity=teacher.identity,
        engine={"kind": "transformers", "batch_size": batch_size, "device": teacher.device.type},
        longest=getattr(teacher.model.config.get_text_config(), "max_position_embeddings", None),
        reads_padded=teacher.model.config.model_type != "limbeck",
    )


def _served(spec: TeachText, engine: ServerEngine, files: TeacherFiles, tokenizer: Tokenizer) -> TextTeacher:
    config = read_config(files) or {}
    config = {**config, **(config.get("text_config") or {})}
    vocab_size = int(config.get("vocab_size") or tokenizer.size)
    stops = stops_of(SimpleNamespace(generation_config=_generation_config(files)), tokenizer, vocab_size=vocab_size)
    samplers = {
        effort: ServerSampler(
            engine,
            stops=stops,
            vocab_size=vocab_size,
            max_new_tokens=spec.limit(effort),
            temperature=spec.temperature,
            top_p=spec.top_p,
        )
        for effort in spec.efforts or [None]
    }
    return TextTeacher(
        samplers,
        identity={"name": files.name},
        engine={"kind": "server", "model": engine.model},
        longest=config.get("max_position_embeddings"),
        reads_padded=True,
    )


def _generation_config(files: TeacherFiles) -> Any:
    """Its stop tokens are among those that end a completion; None where the model has none beside it."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(files.model, revision=files.hub_revision)
    except OSError:
        return None
