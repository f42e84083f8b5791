"""What tells one model, and one thing asked of it, from all others: the keys of what surgery keeps in the user cache."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from limbeck.errors import SpecError
from limbeck.plan.pruned import TYPES
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.students.causal_lm import transformers_quiet
from limbeck.students.pretrained import Source, source_of, vocabulary
from limbeck.surgery.anatomy import unrecognised
from limbeck.teachers.files import TeacherFiles, weights_digest

_VOLATILE = ("transformers_version", "_name_or_path", "limbeck_student", "dtype", "torch_dtype")


@dataclass(frozen=True)
class Parent:
    """The model that is pruned, before it is loaded."""

    source: Source
    weights: str
    """The digest of its weights' files, or its commit."""
    config: Mapping[str, Any]
    """As transformers reads it, defaults included."""
    vocab_size: int

    @property
    def identity(self) -> str:
        """What tells the model from others: weights, and what is computed with them."""
        return digest_of({"weights": self.weights, "config": config_digest(self.config)})


def parent_of(spec: HuggingFaceStudent) -> Parent:
    """Where a model lies and what tells it from others. A hub model's configuration is downloaded where it is not here.

    `SpecError` for one that is not recognised, which names its first block.
    """
    from transformers import AutoConfig

    vocab_size, source = vocabulary(spec), source_of(spec)
    weights = weights_digest(TeacherFiles(spec.model, source.model, source.revision))
    if weights is None:
        raise SpecError(f"student.model={spec.model} has no weights that could be pruned (*.safetensors)")
    with transformers_quiet(f"student.model={spec.model} cannot be read", error=SpecError):
        found = AutoConfig.from_pretrained(source.model, **source.arguments)
    config = found.to_dict()
    if config["model_type"] not in TYPES:
        _refuse(found)
    return Parent(source, weights, config, vocab_size)


def _refuse(config: Any) -> None:
    from transformers import AutoModelForCausalLM

    with transformers_quiet("student.model cannot be built", error=SpecError), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    raise unrecognised(model)


def config_digest(config: Mapping[str, Any]) -> str:
    """Of what a configuration says of the model, and not of how it came here."""
    told = {key: value for key, value in config.items() if key not in _VOLATILE}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode("utf-8")).hexdigest()[:16]


def digest_of(values: Mapping[str, Any]) -> str:
    """Twenty hexadecimal digits of a mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()[:20]
