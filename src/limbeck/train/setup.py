"""From a recipe to everything a run needs: resolved, cross-checked and opened before the first step.

Whatever can be wrong is found here: a store of another tokenizer or other documents, a signal it does not hold, vocabularies
that differ, a teacher that cannot be had.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from limbeck.compute import pick_device, pick_dtype
from limbeck.data.loader import Batch, Loader, RowSource
from limbeck.data.packing import SequenceStream
from limbeck.data.store_rows import StoreRows
from limbeck.data.streams import counted_share, open_stream
from limbeck.data.vocabulary_pair import pieces, vocabulary_pair
from limbeck.evals.reference import Reference, reads_alike, teacher_reference
from limbeck.objectives.across_prepared import Across, prepare_across
from limbeck.objectives.custom import load_functions
from limbeck.objectives.hidden import build_projection
from limbeck.progress import say
from limbeck.runs import Costs
from limbeck.signals.store import SignalStore
from limbeck.spec.across_tokenizers import ProjectedKL
from limbeck.spec.objective import needs_hidden_states, needs_teacher, terms
from limbeck.spec.parallel import Sharded
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import ChunksSignal, DenseSignal
from limbeck.spec.teacher import Context
from limbeck.spec.upcycled_student import UpcycledStudent
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.model import Reading, StudentModel
from limbeck.students.pretrained import PretrainedStudent, source_of
from limbeck.students.pretrained_folder import PRUNING
from limbeck.students.start import Start, find_start, yarns
from limbeck.surgery.folder import pruned_student
from limbeck.teachers.files import TeacherFiles, weights_digest
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.teachers.live import LiveRows
from limbeck.teachers.live_chunks import LiveChunks
from limbeck.train.accounts import StudentCosts, student_costs, teacher_flops_per_scored_token, tokens_scored_per_row
from limbeck.train.checks import check_batch, check_holds, check_reads_whole, check_store, teacher_width, with_vocabulary
from limbeck.train.parallel import Processes, from_first, start_processes, wait_for_all
from limbeck.train.pool import AskedRows, pool_size
from limbeck.train.sharding import shard
from limbeck.train.split import MovedRows, teacher_device
from limbeck.train.teacher_apart import TeacherApart, teacher_apart
from limbeck.train.texts import Texts, first_process_first
from limbeck.train.writers import Writers, open_writers


@dataclass(frozen=True)
class StartRecord:
    """The weights that a student begins with, for the run's folder: what they have cost is in the run that they are from."""

    weights: str
    digest: str | None
    """Of their files."""


@dataclass(frozen=True)
class PrunedRecord:
    """The `pruning.json` of what a student begins as, read at the start: a cache may be emptied while it trains."""

    text: str
    key: str | None
    """Of the pruned folder; None where the pruning is an earlier one's, whose student this one goes on from."""


@dataclass(frozen=True)
class Setup:
    """Everything a run needs."""

    recipe: Recipe
    """Resolved: the student's vocabulary is filled in."""
    texts: Texts
    student: StudentModel
    projection: nn.Linear | None
    """Trains with the student and is no part of it: its hidden states to the teacher's width, where the objective needs it."""
    across: Across | None
    """Of terms across tokenizers: what they know of the two vocabularies."""
    loader: Loader
    processes: Processes
    device: torch.device
    dtype: torch.dtype
    reference: Reference | None
    teacher_apart: TeacherApart | None
    """Where there is no reference because student and teacher read other tokens."""
    start: StartRecord | None
    """None where the student begins at random."""
    pruned: PrunedRecord | None
    """None where the student begins as a whole model."""
    student_costs: StudentCosts
    step_costs: Costs
    """Of one optimizer step that reads texts alone: tokens and student FLOPs."""
    teacher_flops_per_scored_token: float
    tokens_scored_per_row: float
    rows_per_token: float
    """Positions that hold something for each target that has a loss."""
    writers: Writers | None
    """Of an on-policy run."""

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the student: then all of them take part wherever it reads."""
        return isinstance(self.student, FSDPModule)

    @property
    def temperature(self) -> float:
        """At which teacher and student are compared."""
        return getattr(self.recipe.signal, "temperature", 1.0)

    def read(self, batch: Batch) -> Reading:
        """What the student makes of a batch: hidden states [sequences, tokens, hidden size] and more; call under autocast."""
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


def open_setup(recipe: Recipe) -> Setup:
    """Resolve and open a recipe. Raises before anything is computed if the recipe asks for what cannot be given."""
    load_functions(recipe.objective)
    device = pick_device(recipe.device)
    processes = start_processes(device, teachers=pool_size(recipe))
    start, dense = _starts(recipe)
    signals = SignalStore.open(recipe.store_path) if recipe.uses_store else None
    texts = first_process_first(recipe, processes)
    check_holds(recipe, texts, size=recipe.student.vocab_size)
    check_reads_whole(recipe, texts)
    if signals is not None:
        check_store(signals, recipe, texts)
    if not processes.teachers:
        teacher = _live_teacher(recipe, device=teacher_device(recipe, device=device))
        return _opened(recipe, texts, signals, teacher, start=start, dense=dense, processes=processes, device=device)
    asked = AskedRows(processes, temperature=getattr(recipe.signal, "temperature", 1.0), device=device)
    with asked.told_where_it_fails():
        return _opened(recipe, texts, signals, asked, start=start, dense=dense, processes=processes, device=device)


def _opened(
    recipe: Recipe,
    texts: Texts,
    signals: SignalStore | None,
    teacher: Teacher | AskedRows | None,
    *,
    start: Start | None,
    dense: Start | None,
    processes: Processes,
    device: torch.device,
) -> Setup:
    """The rest, with a teacher that is here or is asked."""
    check_batch(recipe, processes)
    pruned = _pruned(recipe, processes, device=device)
    reference = _reference(recipe, texts, teacher, device=device, processes=processes)
    width = teacher_width(recipe, texts, signals=signals, teacher=teacher, reference=reference)
    width = int(from_first(width, processes, device))
    recipe = with_vocabulary(recipe, texts, teacher_width=width or None, start=start or dense)
    assert recipe.student.vocab_size is not None
    if texts.across is not None and reference is not None and len(reference.head_VE) != recipe.student.vocab_size:
        reference = None  # the same tokens, and another number of logits
    stream = open_stream(recipe.data, texts.train, seed=recipe.seed)
    share = counted_share(stream, texts.train)
    _say_how_it_packs(recipe, stream)
    sequences = recipe.batch.sequences
    loader = Loader(
        texts.train,
        stream=stream,
        packing=recipe.data.packing,
        sequences=sequences,
        micro_sequences=recipe.batch.micro_sequences or sequences // processes.world_size,
        rank=processes.rank,
        world_size=processes.world_size,
        source=_row_source(recipe, texts, signals, teacher, device=device),
        reads_ahead=device.type != "cpu",
        teacher_apart=isinstance(teacher, Teacher) and teacher.device != device,
        ask_ahead=teacher.ask if isinstance(teacher, AskedRows) else None,
    )
    context = recipe.teacher.context if recipe.teacher is not None else Context()
    built = (
        recipe if pruned is None else recipe.model_copy(update={"student": pruned.with_vocab_size(recipe.student.vocab_size)})
    )
    student = _student(built, start)
    costs = student_costs(built, texts.train, student)
    projection = _projection(recipe, student, teacher, device=device)
    student = _placed(student, recipe, projection, processes=processes, device=device)
    dtype = _agreed_dtype(recipe, processes, device)
    return Setup(
        recipe=recipe,
        texts=texts,
        student=student,
        projection=projection,
        across=_across(recipe, texts, device=device),
        loader=loader,
        processes=processes,
        device=device,
        dtype=dtype,
        reference=reference,
        teacher_apart=_apart(recipe, texts, teacher, device=device, processes=processes),
        start=_start_record(recipe, start),
        pruned=_pruned_record(recipe, pruned),
        student_costs=costs,
        step_costs=costs.of_step(recipe, padding_share=stream.padding_share, counted_share=share),
        teacher_flops_per_scored_token=teacher_flops_per_scored_token(recipe, texts.scored, texts.files),
        tokens_scored_per_row=tokens_scored_per_row(texts.scored, context=context, rows=texts.train.num_rows),
        rows_per_token=1 / share,
        writers=open_writers(
            recipe,
            train=texts.train,
            tokenizer=texts.tokenizer,
            student=student,
            teacher=teacher if isinstance(teacher, Teacher) else None,
            dtype=dtype,
            device=device,
        ),
    )


def _say_how_it_packs(recipe: Recipe, stream: SequenceStream) -> None:
    """What whole documents leave empty, and which do not fit."""
    if recipe.data.packing == "whole":
        say(f"{recipe.name}: whole documents leave {stream.padding_share:.1%} of positions empty")
    if stream.left_out:
        say(
            f"{recipe.name}: {stream.left_out:,} training documents are longer than data.sequence_length="
            f"{recipe.data.sequence_length} and are left out"
        )


def _starts(recipe: Recipe) -> tuple[Start | None, Start | None]:
    """What the student begins with, and what a dense one begins with that it is upcycled from."""
    weights = recipe.student.weights if isinstance(recipe.student, UpcycledStudent) else None
    start = None if recipe.initial_weights is None else find_start(recipe.initial_weights, key="initial_weights")
    return start, None if weights is None else find_start(weights, key="student.weights")


def _pruned(recipe: Recipe, processes: Processes, *, device: torch.device) -> HuggingFaceStudent | None:
    """The student with its pruning done, where it asks for some; the first process does it, and the others find it."""
    if not isinstance(recipe.student, HuggingFaceStudent) or recipe.student.prune is None:
        return None
    if not processes.is_first:
        wait_for_all(processes)
    done = pruned_student(recipe.student, data=recipe.data, device=device)
    if processes.is_first:
        wait_for_all(processes)
    return done


def _pruned_record(recipe: Recipe, pruned: HuggingFaceStudent | None) -> PrunedRecord | None:
    if pruned is not None:
        text = (Path(pruned.model) / PRUNING).read_text(encoding="utf-8")
        return PrunedRecord(text, json.loads(text)["key"])
    if not isinstance(recipe.student, HuggingFaceStudent):
        return None
    earlier = Path(source_of(recipe.student).model) / PRUNING
    return PrunedRecord(earlier.read_text(encoding="utf-8"), None) if earlier.is_file() else None


def _student(recipe: Recipe, start: Start | None) -> StudentModel:
    """As it begins. Aloud where positions are stretched from another length than the one that the start was trained on."""
    assert recipe.student.vocab_size is not None, "resolved"
    student = build(
        recipe.student, vocab_size=recipe.student.vocab_size, seed=recipe.seed, initial_weights=recipe.initial_weights
    )
    if start is None or isinstance(recipe.student, HuggingFaceStudent):
        return student
    for length in sorted({yarn.original_length for yarn in yarns(recipe.student.layout)}):
        if length not in (start.max_positions, start.stretched_from):
            say(
                f"{recipe.name}: YaRN stretches positions from {length} tokens, but {recipe.initial_weights} was trained on "
                f"{start.max_positions}: is yarn.original_length right?"
            )
    return student


def _start_record(recipe: Recipe, start: Start | None) -> StartRecord | None:
    if start is None or recipe.initial_weights is None:
        return None
    return StartRecord(recipe.initial_weights, weights_digest(TeacherFiles(recipe.initial_weights, str(start.folder))))


def _agreed_dtype(recipe: Recipe, processes: Processes, device: torch.device) -> torch.dtype:
    """The first process's choice: probes of several could differ."""
    wide = pick_dtype(recipe.precision, device) == torch.float32 if processes.is_first else False
    return torch.float32 if from_first(float(wide), processes, device) else torch.bfloat16


def _is_live(recipe: Recipe) -> bool:
    return needs_teacher(recipe.objective) and not recipe.uses_store


def _live_teacher(recipe: Recipe, *, device: torch.device) -> Teacher | None:
    return load_teacher(recipe.teacher, device=device) if _is_live(recipe) and recipe.teacher is not None else None


def _row_source(
    recipe: Recipe,
    texts: Texts,
    signals: SignalStore | None,
    teacher: Teacher | AskedRows | None,
    *,
    device: torch.device,
) -> RowSource | None:
    if signals is not None:
        assert recipe.signal is not None and not isinstance(recipe.signal, DenseSignal)
        return StoreRows(signals, texts.train, signal=recipe.signal)
    if isinstance(teacher, Teacher):
        assert recipe.signal is not None and recipe.teacher is not None
        if isinstance(recipe.signal, ChunksSignal):
            assert texts.across is not None, "an objective that reads chunks crosses tokenizers"
            return LiveChunks(teacher, texts.across.counterpart, signal=recipe.signal, context=recipe.teacher.context)
        live = LiveRows(teacher, texts.train, signal=recipe.signal, context=recipe.teacher.context)
        return live if teacher.device == device else MovedRows(live, device)
    return teacher


def _projection(
    recipe: Recipe, student: StudentModel, teacher: Teacher | AskedRows | None, *, device: torch.device
) -> nn.Linear | None:
    if not needs_hidden_states(recipe.objective):
        return None
    assert teacher is not None and teacher.head_VE is not None, "hidden states come from a live, dense teacher"
    projection = build_projection(
        student_width=student.head_VD.shape[1], teacher_width=teacher.head_VE.shape[1], seed=recipe.seed
    )
    return None if projection is None else projection.to(device)


def _across(recipe: Recipe, texts: Texts, *, device: torch.device) -> Across | None:
    if texts.across is None:
        return None
    assert isinstance(recipe.signal, ChunksSignal), "the recipe's validator requires it"
    projects = any(isinstance(weighted.term, ProjectedKL) for weighted in terms(recipe.objective))
    pair = vocabulary_pair(texts.tokenizer, texts.across.tokenizer)
    return prepare_across(
        recipe.objective,
        pair,
        distribution=recipe.signal.distribution,
        pieces=pieces(pair.student, texts.across.tokenizer) if projects else None,
        device=device,
    )


def _placed(
    student: StudentModel, recipe: Recipe, projection: nn.Linear | None, *, processes: Processes, device: torch.device
) -> StudentModel:
    """On its device, or this process's shards of it (and of the projection) where the recipe asks for that."""
    assert isinstance(student, Decoder | PretrainedStudent), "one of which the recipe's validator knows the blocks"
    if recipe.activation_checkpointing:
        student.recompute_activations()
    if recipe.compile and isinstance(student, Decoder):
        student.compile_blocks()
    if isinstance(recipe.parallel, Sharded) and processes.world_size > 1:
        shard(student, projection, processes=processes, device=device)
        return student
    return student.to(device)


def _reference(
    recipe: Recipe, texts: Texts, teacher: Teacher | AskedRows | None, *, device: torch.device, processes: Processes
) -> Reference | None:
    """The teacher on the held-out documents, for the process that measures; None where it cannot be compared."""
    if recipe.teacher is None or texts.files is None or not recipe.evaluation.kl_to_teacher or not processes.is_first:
        return None
    may_differ = recipe.data.tokenizer is not None or texts.across is not None
    if may_differ and not reads_alike(texts.files, texts.heldout):
        say(f"no KL to {texts.files.name}: its tokenizer is not that of {texts.tokenizer.folder}")
        return None
    if isinstance(teacher, AskedRows):
        teacher.make_reference()  # into the cache, where it is found
        return teacher_reference(recipe.teacher, texts.heldout, device=device)
    return teacher_reference(recipe.teacher, texts.heldout, device=teacher.device if teacher else device, teacher=teacher)


def _apart(
    recipe: Recipe, texts: Texts, teacher: Teacher | AskedRows | None, *, device: torch.device, processes: Processes
) -> TeacherApart | None:
    if not recipe.evaluation.kl_to_teacher or not processes.is_first:
        return None
    return teacher_apart(recipe, texts, device=device, teacher=teacher if isinstance(teacher, Teacher) else None)
