"""A recipe's student before any training, as a model under evaluation: its latency is that of the trained one.

It is written and read as a trained student's folder is, so that what is timed is what would be used. Its weights are random.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from limbeck.data.tokenizers import load_tokenizer, save_tokenizer
from limbeck.errors import SpecError
from limbeck.eval_results import Metric
from limbeck.evals import latency
from limbeck.evals.subject import EvalModel, open_model
from limbeck.plan.pretrained import student_vocab_size
from limbeck.plan.shapes import ShapedStudent, equal_shapes
from limbeck.spec.evals.latency import Latency
from limbeck.spec.recipe import Recipe
from limbeck.spec.student import HuggingFaceStudent, LaidOutStudent, UpcycledStudent
from limbeck.spec.teacher import DType
from limbeck.students.build import build_decoder
from limbeck.students.hf import save
from limbeck.students.pretrained import source_of
from limbeck.teachers.files import TeacherFiles, locate, read_config

LONGEST = 1 << 20
"""Positions that the folder claims: random weights read any length alike."""


def open_untrained(recipe: Recipe, *, dtype: DType = "auto", device: str = "auto") -> EvalModel:
    """The student of a recipe with random weights; one that continues a pretrained model is that model."""
    student = recipe.student
    if isinstance(student, HuggingFaceStudent):
        return open_model(recipe.name, source_of(student).model, heldout=None, teacher=None, dtype=dtype, device=device)
    tokenizer_folder, vocab_size = _tokenizer(recipe)
    return _opened(recipe.name, student, tokenizer_folder, vocab_size=vocab_size, dtype=dtype, device=device)


def latency_by_shape(
    recipe: Recipe, spec: Latency, *, layers: Sequence[int], dtype: DType = "auto", device: str = "auto"
) -> Mapping[str, tuple[dict[str, Metric], dict[str, Any]]]:
    """Latency of the recipe's student at other depths and, within 2 %, its own parameters (`equal_shapes`), by `12x256`."""
    student = recipe.student
    if isinstance(student, HuggingFaceStudent | UpcycledStudent):
        raise SpecError(f"student.kind={student.kind} has no shapes to choose: name a recipe with olmo3, ladder, moe or golf")
    tokenizer_folder, vocab_size = _tokenizer(recipe)
    shapes: dict[str, ShapedStudent] = equal_shapes(student, vocab_size=vocab_size, layers=layers)
    found = {}
    for name, shape in shapes.items():
        title = f"{recipe.name} {name}"
        model = _opened(title, shape, tokenizer_folder, vocab_size=vocab_size, dtype=dtype, device=device)
        latency.check(model, spec)
        found[name] = latency.measure(model, spec)
    return found


def _tokenizer(recipe: Recipe) -> tuple[str, int]:
    """Its folder, and how many logits the student has: what it says, or its teacher's, or as many as there are tokens."""
    files = locate(recipe.teacher) if recipe.teacher is not None else None
    folder = recipe.data.tokenizer or (files.model if files is not None else "")
    theirs = _vocabulary(files) if files is not None else None
    return folder, student_vocab_size(recipe.student) or theirs or load_tokenizer(folder).size


def _vocabulary(files: TeacherFiles) -> int | None:
    config = read_config(files) or {}
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return int(size) if size else None


def _opened(
    name: str, student: LaidOutStudent, tokenizer_folder: str, *, vocab_size: int, dtype: DType, device: str
) -> EvalModel:
    tokenizer = load_tokenizer(tokenizer_folder)
    decoder = build_decoder(student, vocab_size=vocab_size, seed=0)
    with TemporaryDirectory() as within:
        folder = Path(within) / "student"
        save(decoder, spec=student, folder=folder, max_positions=LONGEST, eos_token_id=tokenizer.end_id)
        save_tokenizer(tokenizer, folder)
        return open_model(name, str(folder), heldout=None, teacher=None, dtype=dtype, device=device)
