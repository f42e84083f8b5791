"""What a step and a row of the teacher cost in FLOPs, for the documents at hand.

Attention reaches over a document, not over a packed row: the length that counts is the token-weighted mean over documents,
sum(l^2) / sum(l), or the whole row where packing is plain.

Tokens are targets that have a loss, in costs and in budgets: padding, the template of chats and bodies that are not learnt are
none. FLOPs are those of all positions that hold something.
"""

from dataclasses import dataclass

import numpy as np

from limbeck.data.token_store import TokenStore
from limbeck.data.windows import windows
from limbeck.errors import SpecError, TeacherError
from limbeck.plan.accounting import (
    Parameters,
    student_flops_per_token,
    student_parameters,
    teacher_flops_per_token,
    training_flops_per_token,
)
from limbeck.plan.teachers import find
from limbeck.progress import say
from limbeck.runs import Costs
from limbeck.spec.objective import needs_teacher
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import Context
from limbeck.students.model import StudentModel
from limbeck.students.pretrained import PretrainedStudent
from limbeck.teachers.files import TeacherFiles, read_config, stored_parameters


def mean_context(lengths: np.ndarray, *, longest: int) -> float:
    """Tokens over which attention reaches, averaged over tokens, where a model sees at most `longest` at once."""
    seen = np.minimum(lengths.astype(np.float64), longest)
    return float((seen * lengths).sum() / lengths.sum())


@dataclass(frozen=True)
class StudentCosts:
    """Of the student: FLOPs per token, averaged over the documents at hand, and parameters."""

    forward_flops: float
    training_flops: float
    parameters: Parameters
    trained: int
    """Parameters that learn; fewer than all where an adapter does."""

    def of_step(self, recipe: Recipe, *, padding_share: float = 0.0, counted_share: float = 1.0) -> Costs:
        """Of one optimizer step, the mean: tokens and student FLOPs. Seconds are not known; rows are counted apart.

        `padding_share` is that of all positions, `counted_share` of those that hold something.
        """
        read = recipe.batch.sequences * recipe.data.sequence_length * (1 - padding_share)
        return Costs(step=1, tokens=max(1, round(read * counted_share)), student_flops=self.training_flops * read)


def student_costs(recipe: Recipe, train: TokenStore, student: StudentModel) -> StudentCosts:
    """By the layout or the configuration. Of a pretrained student whose type is not known there, by the model, said aloud:
    2 FLOPs for every parameter, which overcounts as `teacher_flops_per_scored_token` does."""
    spec, length = recipe.student, recipe.data.sequence_length
    assert spec.vocab_size is not None, "resolved"
    context = mean_context(train.lengths, longest=length) if recipe.data.packing != "plain" else length
    adapter = student.adapter_parameters if isinstance(student, PretrainedStudent) else 0
    try:
        parameters = student_parameters(spec, vocab_size=spec.vocab_size)
        forward = student_flops_per_token(spec, vocab_size=spec.vocab_size, context=context)
        training = training_flops_per_token(spec, vocab_size=spec.vocab_size, context=context, adapter_parameters=adapter)
    except SpecError as error:
        assert isinstance(student, PretrainedStudent), "layouts can be counted"
        say(f"FLOPs counted from the student's parameters ({error})")
        parameters = _counted(student)
        forward = 2.0 * parameters.total
        training = 3 * forward if not adapter else 2 * forward + 6.0 * adapter
    return StudentCosts(forward, training, parameters, adapter or parameters.total)


def _counted(student: PretrainedStudent) -> Parameters:
    """All but an adapter's; every one counts as active."""
    total = sum(parameter.numel() for parameter in student.parameters()) - student.adapter_parameters
    matrices = {id(matrix): matrix.numel() for matrix in (student.causal_lm.get_input_embeddings().weight, student.head_VD)}
    embedding = sum(matrices.values())
    return Parameters(total, embedding, total - embedding, total)


def teacher_flops_per_scored_token(recipe: Recipe, train: TokenStore, files: TeacherFiles | None) -> float:
    """Forward FLOPs of the teacher for each token that it reads; 0 where the objective does without.

    By the teacher's configuration where its type is known. Otherwise 2 FLOPs for every stored parameter, which overcounts an
    untied input embedding and experts that a token does not visit, and leaves out attention. 0, said aloud, where neither
    is on this machine.
    """
    if not needs_teacher(recipe.objective) or recipe.teacher is None or files is None:
        return 0.0
    config = read_config(files) or find(files.name)
    try:
        if config is not None:
            return teacher_flops_per_token(config, context=mean_context(train.lengths, longest=recipe.teacher.context.window))
    except TeacherError as error:
        say(f"{files.name}: FLOPs counted from its stored parameters ({error})")
    parameters = stored_parameters(files)
    if parameters is None:
        say(f"{files.name}: neither its configuration nor its weights are here, so its FLOPs are counted as 0")
        return 0.0
    return 2.0 * parameters


def tokens_scored_per_row(train: TokenStore, *, context: Context) -> float:
    """How many tokens the teacher reads for each row it leaves: more than one where windows overlap."""
    rows = (train.lengths - 1).tolist()
    read = sum(each.stop - each.start for n in rows for each in windows(n, window=context.window, overlap=context.overlap))
    return read / sum(rows)
