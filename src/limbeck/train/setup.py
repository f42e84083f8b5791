"""From a recipe to everything a run needs: resolved, cross-checked and opened before the first step.

Whatever can be wrong is found here: a store of another tokenizer or other documents, a signal it does not hold, vocabularies
that differ, a teacher that cannot be had.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from limbeck.compute import pick_device, pick_dtype
from limbeck.data.loader import Batch, Loader, RowSource
from limbeck.data.packing import TokenStream
from limbeck.data.store_rows import StoreRows
from limbeck.data.token_store import TokenStore, prepare
from limbeck.data.tokenizers import Tokenizer, load_tokenizer
from limbeck.errors import SpecError, StoreError
from limbeck.evals.reference import Reference, reads_alike, teacher_reference
from limbeck.objectives.custom import load_functions
from limbeck.objectives.hidden import build_projection
from limbeck.progress import say
from limbeck.runs import Costs
from limbeck.signals.store import SignalStore
from limbeck.spec.objective import needs_hidden_states, needs_teacher
from limbeck.spec.parallel import Sharded
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import DenseSignal
from limbeck.spec.student import Student, UpcycledStudent
from limbeck.spec.teacher import Context
from limbeck.students.build import build
from limbeck.students.decoder import Decoder, Reading
from limbeck.teachers.files import TeacherFiles, locate, read_config, weights_digest
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.teachers.live import LiveRows
from limbeck.train.accounts import step_costs, teacher_flops_per_scored_token, tokens_scored_per_row
from limbeck.train.parallel import Processes, from_first, start_processes, wait_for_all
from limbeck.train.sharding import shard


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
    student: Decoder
    projection: nn.Linear | None
    """Trains with the student and is no part of it: its hidden states to the teacher's width, where the objective needs it."""
    loader: Loader
    processes: Processes
    device: torch.device
    dtype: torch.dtype
    reference: Reference | None
    step_costs: Costs
    """Of one optimizer step: tokens and student FLOPs."""
    teacher_flops_per_scored_token: float
    tokens_scored_per_row: float
    rows_per_epoch: int

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the student: then all of them take part wherever it reads."""
        return isinstance(self.student, FSDPModule)

    @property
    def temperature(self) -> float:
        """At which teacher and student are compared."""
        return getattr(self.recipe.signal, "temperature", 1.0)

    def read(self, batch: Batch) -> Reading:
        """What the student makes of a batch: hidden states [sequences, tokens, hidden size] and more; call it under autocast."""
        reading: Reading = self.student(
            batch.tokens_BT.to(self.device),
            positions_BT=batch.positions_BT.to(self.device),
            segments_BT=batch.segments_BT.to(self.device) if batch.segments_BT is not None else None,
        )
        return reading

    @property
    def trained(self) -> nn.Module:
        """All that the optimizer changes and a checkpoint holds: the student, and the projection where there is one."""
        if self.projection is None:
            return self.student
        return nn.ModuleDict({"student": self.student, "projection": self.projection})


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
    load_functions(recipe.objective)
    device = pick_device(recipe.device)
    processes = start_processes(device)
    signals = SignalStore.open(recipe.store_path) if recipe.uses_store else None
    texts = _first_process_first(recipe, processes)
    if signals is not None:
        _check_store(signals, recipe, texts)
    teacher = load_teacher(recipe.teacher, device=device) if _is_live(recipe) and recipe.teacher is not None else None
    reference = _reference(recipe, texts, teacher, device=device, processes=processes)
    width = _teacher_width(recipe, texts, signals=signals, teacher=teacher, reference=reference)
    recipe = with_vocabulary(recipe, texts, teacher_width=int(from_first(width, processes, device)) or None)
    assert recipe.student.vocab_size is not None
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
        reads_ahead=device.type != "cpu",
    )
    context = recipe.teacher.context if recipe.teacher is not None else Context()
    projection = _projection(recipe, teacher, device=device)
    return Setup(
        recipe=recipe,
        texts=texts,
        student=_student(recipe, projection, processes=processes, device=device),
        projection=projection,
        loader=loader,
        processes=processes,
        device=device,
        dtype=_agreed_dtype(recipe, processes, device),
        reference=reference,
        step_costs=step_costs(recipe, texts.train),
        teacher_flops_per_scored_token=teacher_flops_per_scored_token(recipe, texts.train, texts.files),
        tokens_scored_per_row=tokens_scored_per_row(texts.train, context=context),
        rows_per_epoch=stream.rows_per_epoch,
    )


def with_vocabulary(recipe: Recipe, texts: Texts, *, teacher_width: int | None) -> Recipe:
    """The recipe with `student.vocab_size` filled in and checked: the teacher's logits, or without one the tokenizer's size.

    A control takes the teacher's too, so that it is the same student; it must be the same where its KL is measured.
    """
    asked = recipe.student.vocab_size
    if asked is not None and teacher_width is not None and asked != teacher_width:
        raise SpecError(
            f"student.vocab_size={asked}, but the teacher's vocabulary is {teacher_width}: remove student.vocab_size"
        )
    size = asked or teacher_width or texts.tokenizer.size
    if size < texts.tokenizer.size:
        raise SpecError(f"student.vocab_size={size} is smaller than the tokenizer's {texts.tokenizer.size} ids")
    return recipe.model_copy(update={"student": _with_size(recipe.student, size)})


def _with_size(student: Student, vocab_size: int) -> Student:
    """An upcycled student's vocabulary is its dense student's."""
    if isinstance(student, UpcycledStudent):
        return student.model_copy(update={"dense": _with_size(student.dense, vocab_size)})
    return student.model_copy(update={"vocab_size": vocab_size})


def _teacher_width(
    recipe: Recipe, texts: Texts, *, signals: SignalStore | None, teacher: Teacher | None, reference: Reference | None
) -> int:
    """The teacher's logits, from whatever is at hand of it; 0 where nothing is, or nothing compares student and teacher."""
    if signals is not None:
        return signals.identity.vocab_size
    if teacher is not None:
        return teacher.vocab_size
    if reference is not None:
        return len(reference.head_VE)
    if texts.files is None or recipe.student.vocab_size is not None:
        return 0
    if recipe.data.tokenizer is not None and not reads_alike(texts.files, texts.train):
        return 0
    config = read_config(texts.files) or {}
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)


def _agreed_dtype(recipe: Recipe, processes: Processes, device: torch.device) -> torch.dtype:
    """The first process's choice: probes of several could differ."""
    wide = pick_dtype(recipe.precision, device) == torch.float32 if processes.is_first else False
    return torch.float32 if from_first(float(wide), processes, device) else torch.bfloat16


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
    if weights is not None and texts.files is not None and texts.files.quantisation != held["quantisation"]:
        raise StoreError(
            f"{signals.path} was scored by {held['name']} with quantisation {held['quantisation']}, but the recipe's teacher "
            f"has {texts.files.quantisation}: set teacher.quantisation as the store was written, or name another store"
        )
    if recipe.teacher is not None and recipe.teacher.dtype not in ("auto", held["dtype"]):
        raise StoreError(
            f"{signals.path} was scored in {held['dtype']}, not in teacher.dtype={recipe.teacher.dtype}: name another store"
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


def _projection(recipe: Recipe, teacher: Teacher | None, *, device: torch.device) -> nn.Linear | None:
    if not needs_hidden_states(recipe.objective):
        return None
    assert teacher is not None and teacher.head_VE is not None, "hidden states come from a live, dense teacher"
    projection = build_projection(
        student_width=recipe.student.layout.hidden_size, teacher_width=teacher.head_VE.shape[1], seed=recipe.seed
    )
    return None if projection is None else projection.to(device)


def _student(recipe: Recipe, projection: nn.Linear | None, *, processes: Processes, device: torch.device) -> Decoder:
    """On its device, or this process's shards of it (and of the projection) where the recipe asks for that."""
    assert recipe.student.vocab_size is not None
    student = build(recipe.student, vocab_size=recipe.student.vocab_size, seed=recipe.seed)
    if recipe.activation_checkpointing:
        student.recompute_activations()
    if recipe.compile:
        student.compile_blocks()
    if isinstance(recipe.parallel, Sharded) and processes.world_size > 1:
        shard(student, projection, processes=processes, device=device)
        return student
    return student.to(device)


def _reference(
    recipe: Recipe, texts: Texts, teacher: Teacher | None, *, device: torch.device, processes: Processes
) -> Reference | None:
    """The teacher on the held-out documents, for the process that measures; None where it cannot be compared."""
    if recipe.teacher is None or texts.files is None or not recipe.evaluation.kl_to_teacher or not processes.is_first:
        return None
    if recipe.data.tokenizer is not None and not reads_alike(texts.files, texts.heldout):
        say(f"no KL to {texts.files.name}: its tokenizer is not data.tokenizer={recipe.data.tokenizer}")
        return None
    return teacher_reference(recipe.teacher, texts.heldout, device=device, teacher=teacher)
