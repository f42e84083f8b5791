"""What a step and a row of the teacher cost in FLOPs, for the documents at hand.

Attention reaches over a document, not over a packed row: the length that counts is the token-weighted mean over documents,
sum(l^2) / sum(l), or the whole row where packing is plain.
"""

import numpy as np

from limbeck.data.token_store import TokenStore
from limbeck.data.windows import windows
from limbeck.errors import TeacherError
from limbeck.plan.accounting import teacher_flops_per_token, training_flops_per_token
from limbeck.plan.teachers import find
from limbeck.progress import say
from limbeck.runs import Costs
from limbeck.spec.objective import needs_teacher
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import Context
from limbeck.teachers.files import TeacherFiles, read_config, stored_parameters


def mean_context(lengths: np.ndarray, *, longest: int) -> float:
    """Tokens over which attention reaches, averaged over tokens, where a model sees at most `longest` at once."""
    seen = np.minimum(lengths.astype(np.float64), longest)
    return float((seen * lengths).sum() / lengths.sum())


def step_costs(recipe: Recipe, train: TokenStore) -> Costs:
    """Of one optimizer step: tokens and student FLOPs, forward and backward. Seconds are not known; rows are counted apart."""
    assert recipe.student.vocab_size is not None, "resolved"
    length = recipe.data.sequence_length
    context = mean_context(train.lengths, longest=length) if recipe.data.packing == "documents" else length
    tokens = recipe.batch.sequences * length
    flops = training_flops_per_token(recipe.student, vocab_size=recipe.student.vocab_size, context=context)
    return Costs(step=1, tokens=tokens, student_flops=flops * tokens)


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
