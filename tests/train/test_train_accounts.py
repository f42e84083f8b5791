"""What a run says it cost, against FLOPs counted by hand from the documents, the tensors and the formula of the paper.

Forward FLOPs of a token (arXiv 2502.08606, appendix H): 2 N + 2 context layers (heads' width) + 2 V D; training
costs three times that.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.recipe import Recipe
from limbeck.study.stores import write_recipe_stores
from limbeck.teachers.huggingface import Teacher
from limbeck.train.setup import open_setup
from limbeck.train.train import train

WINDOW, OVERLAP = 48, 16
CE: dict[str, Any] = {"objective": {"kind": "ce"}, "evaluation": {"kl_to_teacher": False}}


def recipe_of(values: dict[str, Any], **changes: Any) -> Recipe:
    return parse(Recipe, {**values, **changes}, source="test")


@pytest.fixture
def lengths(teacher_folder: Path, texts_folder: Path) -> list[int]:
    """Tokens of every training document, start and end among them."""
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    texts = [path.read_text(encoding="utf-8") for path in (texts_folder / "train").glob("*.txt")]
    found = [2 + len(tokenizer(text)["input_ids"]) for text in texts]
    assert min(found) < 32 < WINDOW < max(found)
    return found


def forward_flops(weights: dict[str, Tensor], *, context: float, layers: int, channels: int) -> float:
    """Of a token, from the tensors of an untied model; looking up the input embedding is free, the head is a product."""
    multiplied = sum(tensor.numel() for name, tensor in weights.items() if "embed_tokens" not in name)
    return 2 * multiplied + 2 * context * layers * channels


def mean_length(lengths: list[int], *, longest: int) -> float:
    """Of the document that a token is in, or of what is seen of it at once."""
    return sum(n * min(n, longest) for n in lengths) / sum(lengths)


def tokens_read(lengths: list[int]) -> int:
    """By a teacher that reads every document: its rows, and 16 tokens again for every window after the first."""
    return sum(n - 1 + OVERLAP * max(0, math.ceil((n - 1 - WINDOW) / (WINDOW - OVERLAP))) for n in lengths)


@pytest.fixture
def teacher_flops(teacher_folder: Path, lengths: list[int]) -> float:
    """Of one token that the tiny teacher reads: 2 layers, 4 heads of 8 channels."""
    weights = load_file(teacher_folder / "model.safetensors")
    return forward_flops(weights, context=mean_length(lengths, longest=WINDOW), layers=2, channels=32)


@pytest.mark.parametrize("sequence_length", [32, 96])
@pytest.mark.parametrize("packing", ["documents", "plain"])
def test_attention_of_the_student_reaches_over_a_document(
    values: dict[str, Any], lengths: list[int], packing: str, sequence_length: int
) -> None:
    values["data"] |= {"packing": packing, "sequence_length": sequence_length}
    path = train(recipe_of(values, **CE, budget={"kind": "steps", "amount": 2}))
    context = mean_length(lengths, longest=sequence_length) if packing == "documents" else sequence_length
    weights = load_file(path / "student" / "model.safetensors")
    per_token = forward_flops(weights, context=context, layers=2, channels=2 * 8)
    tokens = [4 * sequence_length, 8 * sequence_length]
    records = open_run(path).events("train")
    assert [record["tokens"] for record in records] == tokens
    assert [record["student_flops"] for record in records] == pytest.approx([3 * per_token * n for n in tokens], rel=1e-12)


def test_a_stored_row_is_paid_for_once_with_the_context_that_it_needed(
    values: dict[str, Any], lengths: list[int], teacher_flops: float
) -> None:
    rows, read = sum(lengths) - len(lengths), tokens_read(lengths)
    assert read > 1.1 * rows
    recipe = recipe_of(values, budget={"kind": "tokens", "amount": 2.5 * rows}, evaluation={"every": 1.0})
    write_recipe_stores([recipe])
    records = open_run(train(recipe)).events("train")
    assert records[-1]["tokens"] >= 2.5 * rows
    expected = [teacher_flops * read * min(1.0, record["tokens"] / rows) for record in records]
    assert [record["teacher_flops"] for record in records] == pytest.approx(expected, rel=1e-12)
    assert 0 < expected[0] < expected[1] < expected[-2] == expected[-1]


def read_for(batch: Any, lengths: list[int]) -> int:
    """Tokens of the windows that hold a position of the batch, each window once; window w > 0 begins at 32 w."""
    places = {(piece.document, position) for piece in batch.pieces for position in range(piece.start, piece.stop)}
    needed = {(document, max(0, math.ceil((position + 1 - WINDOW) / (WINDOW - OVERLAP)))) for document, position in places}
    return sum(min(WINDOW, lengths[document] - 1 - window * (WINDOW - OVERLAP)) for document, window in needed)


@pytest.mark.parametrize("micro", [None, 1])
def test_a_live_teacher_is_paid_for_all_that_it_reads(
    values: dict[str, Any], teacher_flops: float, monkeypatch: pytest.MonkeyPatch, micro: int | None
) -> None:
    """Also in the second epoch, and more in smaller batches, which share fewer windows."""
    recipe = recipe_of(
        values,
        signal={"kind": "dense"},
        budget={"kind": "steps", "amount": 20},
        batch={"sequences": 4, "micro_sequences": micro},
        evaluation={"every": 1.0, "kl_to_teacher": False},
    )
    opened = open_setup(recipe)
    assert opened.loader.stream.rows_per_epoch < 20 * 4 * 32
    in_order = opened.texts.train.lengths.tolist()
    reads = [sum(read_for(batch, in_order) for batch in opened.loader.step(step)) for step in range(20)]
    given = [0]
    original = Teacher.hidden

    def counted(teacher: Teacher, tokens_BT: Tensor) -> Tensor:
        given[0] += tokens_BT.numel()
        return original(teacher, tokens_BT)

    monkeypatch.setattr(Teacher, "hidden", counted)
    records = open_run(train(recipe)).events("train")
    expected = (torch.tensor(reads, dtype=torch.float64).cumsum(0) * teacher_flops).tolist()
    assert [record["teacher_flops"] for record in records] == pytest.approx(expected, rel=1e-12)
    assert sum(reads) <= given[0] <= 2 * sum(reads)  # the model is given padding besides
