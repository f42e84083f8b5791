"""Evaluating any Hugging Face causal language model, a run's student among them, on held-out documents."""

from pathlib import Path

from limbeck.compute import pick_device
from limbeck.data.token_store import prepare_texts
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import LimbeckError
from limbeck.evals.bits_per_byte import HeldOut, evaluate
from limbeck.evals.reference import Reference, teacher_reference
from limbeck.spec.data import Texts
from limbeck.spec.teacher import Context, HuggingFaceTeacher, Teacher
from limbeck.teachers.files import locate
from limbeck.teachers.huggingface import load_teacher


def evaluate_model(
    model: str, *, texts: Texts, context: Context, teacher: Teacher | None, device: str = "auto", dtype: str = "auto"
) -> HeldOut:
    """Bits per byte of the model in a folder or of a hub id; with a `teacher` of the same tokenizer, also the KL to it."""
    spec = HuggingFaceTeacher(model=model, dtype=dtype, context=context)
    if "/" not in model and not Path(model).is_dir():
        raise LimbeckError(f"{model} is neither a folder nor a hub id")
    tokenizer = load_tokenizer(model)
    store = prepare_texts(texts, tokenizer, title="held-out")
    where = pick_device(device)
    reference: Reference | None = None
    if teacher is not None:
        files = locate(teacher)
        if load_tokenizer(files.model, revision=files.hub_revision).fingerprint == tokenizer.fingerprint:
            reference = teacher_reference(teacher, store, device=where)
    return evaluate(load_teacher(spec, device=where), store, context=context, reference=reference, title=f"evaluating {model}")
