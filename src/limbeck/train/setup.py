"""From a recipe to everything a run needs: resolved, cross-checked and opened before the first step.

Whatever can be wrong is found here: a store of another tokenizer or other documents, a signal it does not hold, vocabularies
that differ, a teacher that cannot be had.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from limbeck.compute import pick_device, pick_dtype
from limbeck.data.loader import Loader, RowSource
from limbeck.data.packing import TokenStream
from limbeck.data.store_rows import StoreRows
from limbeck.data.token_store import TokenStore, prepare
from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.errors import SpecError, StoreError
from limbeck.evals.reference import Reference, teacher_reference
from limbeck.plan.accounting import student_flops_per_token, teacher_flops_per_token
from limbeck.plan.teachers import find
from limbeck.runs import Costs
from limbeck.signals.store import SignalStore
from limbeck.spec.objective import needs_teacher
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import DenseSignal
from limbeck.students.build import build
from limbeck.students.olmo3 import Olmo3
from limbeck.teachers.files import TeacherFiles, locate, read_config, weights_digest
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.teachers.live import LiveRows
from limbeck.train.parallel import Processes, start_processes, wait_for_all


@dataclass(frozen=True)
class Texts:
    """The tokenizer of a recipe and what it made of the texts."""

    tokenizer: Tokenizer
    train: TokenStore
    heldout: TokenStore
    files: TeacherFiles | None
    """The teacher's, where the recipe has one."""


@dataclass(frozen=True)
class Setup:
    """Everything a run needs."""

    recipe: Recipe
    """Resolved: the student's vocabulary is filled in."""
    texts: Texts
    student: Olmo3
    loader: Loader
    processes: Processes
    device: torch.device
    dtype: torch.dtype
    reference: Reference | None
    step_costs: Costs
    """Of one optimizer step, seconds left out; teacher_flops are those of a live teacher reading each token once."""
    teacher_flops_per_token: float
    rows_per_epoch: int

    @property
    def temperature(self) -> float:
        """At which teacher and student are compared."""
        return getattr(self.recipe.signal, "temperature", 1.0)


def open_texts(recipe: Recipe) -> Texts:
    """Tokenizer and token stores of a recipe; a teacher that reads other ids than the student is refused."""
    files = locate(recipe.teacher) if recipe.teacher is not None else None
    if recipe.data.tokenizer is not None:
        tokenizer = load_tokenizer(recipe.data.tokenizer)
    else:
        assert files is not None, "the recipe's validator requires one of the two"
        tokenizer = _teachers_tokenizer(files)
    if files is not None and recipe.data.tokenizer is not None and needs_teacher(recipe.objective):
        theirs = _teachers_tokenizer(files)
        if theirs.backend.get_vocab() != tokenizer.backend.get_vocab():
            raise SpecError(
                f"data.tokenizer={recipe.data.tokenizer} (vocabulary of {tokenizer.size}) is not the teacher's "
                f"({files.name}, {theirs.size}): a signal is about the teacher's ids; remove data.tokenizer"
            )
    train, heldout = prepare(recipe.data, tokenizer)
    return Texts(tokenizer, train, heldout, files)


def _teachers_tokenizer(files: TeacherFiles) -> Tokenizer:
    return load_tokenizer(files.model, revision=files.hub_revision, trust_remote_code=files.trust_remote_code)


def open_setup(recipe: Recipe) -> Setup:
    """Resolve and open a recipe. Raises before anything is computed if the recipe asks for what cannot be given."""
    device = pick_device(recipe.device)
    processes = start_processes(device)
    signals = SignalStore.open(Path(recipe.store_path)) if recipe.uses_store else None
    texts = _first_process_first(recipe, processes)
    if signals is not None:
        _check_store(signals, recipe, texts)
    recipe = with_vocabulary(recipe, texts, signals)
    assert recipe.student.vocab_size is not None
    teacher = load_teacher(recipe.teacher, device=device) if _is_live(recipe) and recipe.teacher is not None else None
    reference = _reference(recipe, texts, teacher, device=device, processes=processes)
    stream = TokenStream(texts.train.lengths, sequence_length=recipe.data.sequence_length, seed=recipe.seed)
    sequences = recipe.batch.sequences
    if sequences % processes.world_size:
        raise SpecError(f"batch.sequences={sequences} is not a multiple of the {processes.world_size} processes")
    loader = Loader(
        texts.train,
        stream=stream,
        packing=recipe.data.packing,
        sequences=sequences,
        micro_sequences=recipe.batch.micro_sequences or sequences // processes.world_size,
        rank=processes.rank,
        world_size=processes.world_size,
        source=_row_source(recipe, texts, signals, teacher),
    )
    tokens_per_step = sequences * recipe.data.sequence_length
    student_flops = 3 * student_flops_per_token(
        recipe.student, vocab_size=recipe.student.vocab_size, context=recipe.data.sequence_length
    )
    teacher_flops = _teacher_flops(recipe, texts)
    return Setup(
        recipe=recipe,
        texts=texts,
        student=build(recipe.student, vocab_size=recipe.student.vocab_size, seed=recipe.seed).to(device),
        loader=loader,
        processes=processes,
        device=device,
        dtype=pick_dtype(recipe.precision, device),
        reference=reference,
        step_costs=Costs(1, tokens_per_step, 0.0, student_flops * tokens_per_step, teacher_flops * tokens_per_step, 0),
        teacher_flops_per_token=teacher_flops,
        rows_per_epoch=stream.rows_per_epoch,
    )


def with_vocabulary(recipe: Recipe, texts: Texts, signals: SignalStore | None) -> Recipe:
    """The recipe with `student.vocab_size` filled in and checked: the teacher's width, or without one the tokenizer's size."""
    teacher = signals.identity.vocab_size if signals is not None else None
    if teacher is None and texts.files is not None:
        teacher = (read_config(texts.files) or {}).get("vocab_size")
    asked = recipe.student.vocab_size
    if asked is not None and teacher is not None and needs_teacher(recipe.objective) and asked != teacher:
        raise SpecError(f"student.vocab_size={asked}, but the teacher's vocabulary is {teacher}: remove student.vocab_size")
    size = asked or teacher or texts.tokenizer.size
    if size < texts.tokenizer.size:
        raise SpecError(f"student.vocab_size={size} is smaller than the tokenizer's {texts.tokenizer.size} ids")
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"vocab_size": size})})


def _first_process_first(recipe: Recipe, processes: Processes) -> Texts:
    """Let one process convert, tokenise and fill the cache; the others find it filled."""
    if processes.is_first:
        texts = open_texts(recipe)
        wait_for_all(processes)
        return texts
    wait_for_all(processes)
    return open_texts(recipe)


def _check_store(signals: SignalStore, recipe: Recipe, texts: Texts) -> None:
    """Refuse a store that cannot give what the recipe asks: another signal, tokenizer, context, teacher, or other documents."""
    assert recipe.signal is not None
    signals.check_can_serve(
        recipe.signal,
        tokenizer=texts.train.tokenizer_fingerprint,
        vocab_size=recipe.student.vocab_size,
        context=recipe.teacher.context.model_dump(mode="json") if recipe.teacher is not None else None,
    )
    held = signals.identity.teacher
    # A student may train where the teacher's files are not: then there is nothing to compare.
    weights = weights_digest(texts.files) if texts.files is not None else None
    if texts.files is not None and weights is not None and weights != held["weights"]:
        raise StoreError(
            f"{signals.path} was scored by {held['name']} (weights {held['weights']}), but the recipe's teacher is "
            f"{texts.files.name} (weights {weights}): name the store of this teacher, or write one with `limbeck cache write`"
        )
    missing = signals.missing_documents(texts.train.ids)
    if missing:
        raise StoreError(
            f"{signals.path} lacks {len(missing)} of the {len(texts.train)} training documents (the first: {missing[0]}): "
            "it was written for other texts; run `limbeck cache write` with another store path"
        )


def _is_live(recipe: Recipe) -> bool:
    return needs_teacher(recipe.objective) and not recipe.uses_store


def _row_source(recipe: Recipe, texts: Texts, signals: SignalStore | None, teacher: Teacher | None) -> RowSource | None:
    if signals is not None:
        assert recipe.signal is not None and not isinstance(recipe.signal, DenseSignal)
        return StoreRows(signals, texts.train, signal=recipe.signal)
    if teacher is not None:
        assert recipe.signal is not None and recipe.teacher is not None
        return LiveRows(teacher, texts.train, signal=recipe.signal, context=recipe.teacher.context)
    return None


def _reference(
    recipe: Recipe, texts: Texts, teacher: Teacher | None, *, device: torch.device, processes: Processes
) -> Reference | None:
    if recipe.teacher is None or not recipe.evaluation.kl_to_teacher or not processes.is_first:
        return None
    return teacher_reference(recipe.teacher, texts.heldout, device=device, teacher=teacher)


def _teacher_flops(recipe: Recipe, texts: Texts) -> float:
    """Forward FLOPs of the teacher per token, 0 where the objective does without."""
    if not needs_teacher(recipe.objective) or recipe.teacher is None or texts.files is None:
        return 0.0
    config = read_config(texts.files) or find(texts.files.name)
    if config is None:
        return 0.0
    lengths = texts.train.lengths
    context = min(float((lengths.astype(float) ** 2).sum() / lengths.sum()), recipe.teacher.context.window)
    return teacher_flops_per_token(config, context=int(context))
