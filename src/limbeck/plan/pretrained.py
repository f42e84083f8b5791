"""What the configuration of a pretrained student says of it. Nothing is downloaded."""

from typing import Any

from limbeck.errors import SpecError
from limbeck.model_config import SMOLLM2, read_model_config
from limbeck.plan.pruned import pruned_config
from limbeck.plan.saved_student import saved_student
from limbeck.plan.teachers import find
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.student import Student


def student_config(spec: HuggingFaceStudent) -> dict[str, Any]:
    """The model's config.json, or its entry in the catalogue, with the sizes that pruning leaves.

    `SpecError` where neither is on this machine, or it cannot be pruned so.
    """
    config = find(SMOLLM2) if spec.model == "smollm2" else read_model_config(spec.model, revision=spec.revision)
    config = config or find(spec.model)
    if config is None:
        raise SpecError(
            f"student.model={spec.model}: its config.json is not on this machine, nor is it in the catalogue: name a folder, "
            "or download the model"
        )
    config = config.get("text_config") or config
    return config if spec.prune is None else pruned_config(config, spec.prune)


def student_width(spec: HuggingFaceStudent) -> int:
    """The model's hidden size. Errors as `student_config`."""
    config = student_config(spec)
    own = saved_student(config)
    return int(config["hidden_size"]) if own is None else own.layout.hidden_size


def student_vocab_size(spec: Student) -> int | None:
    """The vocabulary that a student is asked for, or that of the model that it is; None where its teacher says it."""
    if isinstance(spec, HuggingFaceStudent) and spec.vocab_size is None:
        return int(student_config(spec)["vocab_size"])
    return spec.vocab_size
