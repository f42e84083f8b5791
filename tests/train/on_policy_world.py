"""A tiny student that learns on its own continuations from a teacher of the same tokens."""

from pathlib import Path
from typing import Any

from tiny_world import make_teacher

from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe

OWN = {"kind": "olmo3", "hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
SECONDS = {"seconds", "generate_seconds", "teach_seconds", "train_seconds"}
"""What a clock says in a record."""


def on_policy(values: dict[str, Any], student: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The tiny recipe, on-policy: eight continuations a step of eight tokens each, of up to 24."""
    asked = {"prompts": {"kind": "documents", "tokens": 8}, "max_new_tokens": 24, **changes.pop("on_policy", {})}
    return {
        **values,
        "student": values["student"] if student is None else {"kind": "huggingface", "model": str(student)},
        "data": {**values["data"], "sequence_length": 48},
        "signal": {"kind": "dense"},
        "objective": {"kind": "reverse_kl"},
        "batch": {"sequences": 8, "micro_sequences": 3},
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "evaluation": {"every": 1.0, "kl_to_teacher": False},
        "on_policy": asked,
        **changes,
    }


def recipe_of(values: dict[str, Any]) -> Recipe:
    return parse(Recipe, values, source="test")


def make_student(folder: Path) -> Path:
    """Another random Llama than the teacher, with its tokenizer."""
    return make_teacher(folder, seed=1)
