"""The texts of a recipe: which tokenizers read them, and what they made of them."""

from dataclasses import dataclass

from limbeck.data.chat_template import with_chat_template
from limbeck.data.counterpart import Counterpart, counterpart
from limbeck.data.prepare import prepare
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.errors import DataError, SpecError
from limbeck.spec.objective import crosses_tokenizers, needs_teacher
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.students.pretrained import Source, source_of
from limbeck.teachers.files import TeacherFiles, locate
from limbeck.train.parallel import Processes, wait_for_teachers_too


@dataclass(frozen=True)
class Across:
    """A teacher's own tokenizer, and what it made of the training documents."""

    tokenizer: Tokenizer
    counterpart: Counterpart


@dataclass(frozen=True)
class Texts:
    """The tokenizer of a recipe and what it made of the texts."""

    tokenizer: Tokenizer
    train: TokenStore
    heldout: TokenStore
    files: TeacherFiles | None
    """The teacher's, where the recipe has one."""
    across: Across | None = None
    """Where the objective compares chunks of text."""

    @property
    def scored(self) -> TokenStore:
        """The training documents as the teacher reads them."""
        return self.train if self.across is None else self.across.counterpart.tokens


def open_texts(recipe: Recipe) -> Texts:
    """Tokenizer and token stores of a recipe.

    A teacher that reads other ids than the student is refused, unless the objective compares chunks of text.
    """
    files = locate(recipe.teacher) if recipe.teacher is not None else None
    source = source_of(recipe.student) if isinstance(recipe.student, HuggingFaceStudent) else None
    crosses = crosses_tokenizers(recipe.objective)
    if recipe.data.tokenizer is not None:
        tokenizer = load_tokenizer(recipe.data.tokenizer)
    elif files is not None and not (crosses and source is not None):
        tokenizer = _teachers_tokenizer(files)
    else:
        assert source is not None, "the recipe's validator requires one of the three"
        tokenizer = load_tokenizer(source.model, **source.arguments)
    learns_ids = files is not None and needs_teacher(recipe.objective) and not crosses
    if learns_ids and files is not None and recipe.data.tokenizer is not None:
        _check_teacher_reads(files, tokenizer, name=recipe.data.tokenizer)
    if source is not None and source.model != tokenizer.folder:
        _check_reads(source, tokenizer, has_teacher=learns_ids)
    tokenizer = with_chat_template(tokenizer, recipe.data.chat_template)
    train, heldout = prepare(recipe.data, tokenizer)
    across = None
    if crosses:
        assert files is not None, "the recipe's validator requires a teacher"
        theirs = _teachers_tokenizer(files)
        across = Across(theirs, counterpart(train, texts=recipe.data.train, student=tokenizer, teacher=theirs))
    return Texts(tokenizer, train, heldout, files, across)


def _check_teacher_reads(files: TeacherFiles, tokenizer: Tokenizer, *, name: str) -> None:
    theirs = _teachers_tokenizer(files)
    if theirs.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise SpecError(
            f"data.tokenizer={name} (vocabulary of {tokenizer.size}) is not the teacher's ({files.name}, {theirs.size}): a "
            f"signal is about the teacher's ids; remove data.tokenizer, or {_ACROSS}"
        )


_ACROSS = (
    "compare chunks of text (objective.kind=alm with signal.kind=chunks), or give the student the teacher's tokenizer "
    "(`limbeck transplant`)"
)


def _check_reads(source: Source, tokenizer: Tokenizer, *, has_teacher: bool) -> None:
    """Refuse texts in other ids than those that a pretrained student knows; where it comes without a tokenizer, none is."""
    try:
        own = load_tokenizer(source.model, **source.arguments)
    except DataError:
        return
    if own.backend.get_vocab() != tokenizer.backend.get_vocab():
        remedy = (
            f"a signal is about the teacher's ids, so take a teacher with the student's tokenizer, {_ACROSS}"
            if has_teacher
            else "set data.tokenizer to the student's"
        )
        raise SpecError(
            f"student.model={source.model} reads other tokens (a vocabulary of {own.size}) than {tokenizer.folder} writes "
            f"({tokenizer.size}): {remedy}"
        )


def _teachers_tokenizer(files: TeacherFiles) -> Tokenizer:
    return load_tokenizer(files.model, revision=files.hub_revision, trust_remote_code=files.trust_remote_code)


def first_process_first(recipe: Recipe, processes: Processes) -> Texts:
    """Let one process convert, tokenise and fill the cache; the others find it filled."""
    if processes.is_first:
        texts = open_texts(recipe)
        wait_for_teachers_too(processes)
        return texts
    wait_for_teachers_too(processes)
    return open_texts(recipe)
