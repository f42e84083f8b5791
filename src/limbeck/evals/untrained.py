"""A student before any training, as a model under evaluation: its latency is that of the trained one.

It is written and read as a trained student's folder is, so that what is timed is what would be used. Its weights are random,
also where the shapes are those of a pretrained model's architecture.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from limbeck.data.tokenizers import load_tokenizer, save_tokenizer
from limbeck.errors import SpecError, TeacherError
from limbeck.eval_results import Metric
from limbeck.evals import latency
from limbeck.evals.subject import EvalModel, open_model
from limbeck.plan.config_shapes import equal_config_shapes
from limbeck.plan.pretrained import student_config, student_vocab_size
from limbeck.plan.shapes import ShapedStudent, equal_shapes
from limbeck.spec.evals.latency import Latency
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.spec.student import LaidOutStudent
from limbeck.spec.teacher import DType
from limbeck.spec.upcycled_student import UpcycledStudent
from limbeck.students.build import build_decoder
from limbeck.students.causal_lm import transformers_quiet
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
    if isinstance(student, HuggingFaceStudent):
        return latency_by_model_shape(recipe.name, student, spec, layers=layers, dtype=dtype, device=device)
    if isinstance(student, UpcycledStudent):
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


def latency_by_model_shape(
    name: str,
    student: HuggingFaceStudent,
    spec: Latency,
    *,
    layers: Sequence[int],
    dtype: DType = "auto",
    device: str = "auto",
) -> Mapping[str, tuple[dict[str, Metric], dict[str, Any]]]:
    """The same of a pretrained model's architecture (`equal_config_shapes`)."""
    with _of_student(student):
        shapes = equal_config_shapes(student_config(student), depths=layers)
    found = {}
    for shape, changes in shapes.items():
        model = open_random(f"{name} {shape}", student, changes, dtype=dtype, device=device)
        latency.check(model, spec)
        found[shape] = latency.measure(model, spec)
    return found


def open_random(
    name: str, student: HuggingFaceStudent, changes: Mapping[str, Any], *, dtype: DType = "auto", device: str = "auto"
) -> EvalModel:
    """A model of a pretrained one's class with random weights and other sizes: `changes` of its config.json."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = source_of(student)
    with transformers_quiet(f"{student.model} in another shape cannot be built", error=SpecError):
        config = AutoConfig.from_pretrained(source.model, **source.arguments).get_text_config()
        shaped = type(config).from_dict({**config.to_dict(), **changes})
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(shaped, dtype=torch.float32, trust_remote_code=student.trust_remote_code)
    with TemporaryDirectory() as within:
        model.save_pretrained(within)
        save_tokenizer(load_tokenizer(source.model, **source.arguments), Path(within))
        return open_model(name, within, heldout=None, teacher=None, dtype=dtype, device=device)


@contextmanager
def _of_student(student: HuggingFaceStudent) -> Iterator[None]:
    """What is said of a teacher's configuration is said of this model's."""
    try:
        yield
    except TeacherError as error:
        raise SpecError(f"{student.model} has no shapes to choose: {str(error).replace('teacher', 'its', 1)}") from error


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
