"""Evaluating what runs leave, and who taught them, with the texts, the teacher and the length that their recipes say."""

from collections.abc import Mapping
from pathlib import Path

from limbeck.compute import pick_device
from limbeck.data.chat_template import with_chat_template
from limbeck.data.tokenizers import load_tokenizer
from limbeck.eval_results import EvalResult
from limbeck.evals.run import run_evals
from limbeck.evals.subject import EvalModel, open_model
from limbeck.runs import open_run, student_folder
from limbeck.spec.evals import Eval
from limbeck.spec.evals.artifact import Artifact
from limbeck.spec.recipe import Recipe
from limbeck.teachers.files import locate
from limbeck.teachers.huggingface import load_teacher


def evaluate_run(path: Path, evals: Mapping[str, Eval]) -> dict[str, EvalResult]:
    """Measure the student of a finished run in float32, as it was saved, and keep the results with the run."""
    recipe = open_run(path).recipe.last_stage
    model = open_model(
        str(path),
        str(student_folder(path)),
        heldout=recipe.data.heldout,
        teacher=recipe.teacher,
        sequence_length=recipe.data.sequence_length,
        dtype="float32",
        device=recipe.device,
        loss_on=recipe.data.loss_on,
    )
    return run_evals(model, evals, folder=path)


def evaluate_teacher(recipe: Recipe, evals: Mapping[str, Eval], *, folder: Path) -> dict[str, EvalResult]:
    """Measure a recipe's teacher on its held-out texts, and keep the results in `folder`.

    Of artifacts there is nothing: they are made of students alone.
    """
    assert recipe.teacher is not None
    evals = {name: spec for name, spec in evals.items() if not isinstance(spec, Artifact)}
    if not evals:
        return {}
    files = locate(recipe.teacher)
    tokenizer = load_tokenizer(files.model, revision=files.hub_revision, trust_remote_code=files.trust_remote_code)
    reader = load_teacher(recipe.teacher, device=pick_device(recipe.device))
    data = recipe.last_stage.data
    tokenizer = with_chat_template(tokenizer, data.chat_template)
    model = EvalModel(files.name, reader, tokenizer, data.heldout, None, data.sequence_length, data.loss_on)
    return run_evals(model, evals, folder=folder)
