"""What tells one model, and one thing asked of it, from all others: the keys of what surgery keeps in the user cache."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.errors import SpecError
from limbeck.model_config import config_path
from limbeck.spec.student import HuggingFaceStudent
from limbeck.students.pretrained import Source, source_of, vocabulary
from limbeck.teachers.files import TeacherFiles, weights_digest


@dataclass(frozen=True)
class Parent:
    """The model that is pruned, before it is loaded."""

    source: Source
    weights: str
    """The digest of its weights' files, or its commit."""
    config: str
    """The digest of its config.json."""
    vocab_size: int


def parent_of(spec: HuggingFaceStudent) -> Parent:
    """Where a model lies and what tells it from others. A hub model's configuration is downloaded where it is not here."""
    vocab_size, source = vocabulary(spec), source_of(spec)
    weights = weights_digest(TeacherFiles(spec.model, source.model, source.revision))
    path = config_path(source.model, revision=source.revision)
    if weights is None or path is None:
        raise SpecError(f"student.model={spec.model} has no weights that could be pruned (*.safetensors)")
    return Parent(source, weights, hashlib.sha256(path.read_bytes()).hexdigest()[:16], vocab_size)


def digest_of(values: Mapping[str, Any]) -> str:
    """Twenty hexadecimal digits of a mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()[:20]
