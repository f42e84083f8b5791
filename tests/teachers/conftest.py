"""What the tests of scoring share: the tiny recipe's training tokens, and its teacher read window by window."""

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.prepare import prepare
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import Context, HuggingFaceTeacher
from limbeck.teachers.huggingface import Teacher, load_teacher


@pytest.fixture
def tokens(values: dict[str, Any]) -> TokenStore:
    recipe = parse(Recipe, values, source="test")
    return prepare(recipe.data, load_tokenizer(values["teacher"]["model"]))[0]


@pytest.fixture
def teacher(teacher_folder: Path) -> Teacher:
    context = Context(window=48, overlap=16)
    return load_teacher(
        HuggingFaceTeacher(model=str(teacher_folder), dtype="float32", context=context), device=torch.device("cpu")
    )
