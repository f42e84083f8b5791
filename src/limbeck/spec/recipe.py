"""A recipe: one complete description of a run. What it cannot say cannot be run."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from limbeck.errors import SpecError
from limbeck.spec.artifact import QuantisationAware, check_begins
from limbeck.spec.base import Spec, one_line
from limbeck.spec.budget import Budget
from limbeck.spec.curriculum import Stage, check_curriculum
from limbeck.spec.data import Data
from limbeck.spec.objective import Objective, check_signal, needs_hidden_states, needs_samples, needs_teacher
from limbeck.spec.on_policy import OnPolicy, ServerEngine
from limbeck.spec.optim import AdamW, Averaging, Cosine, NoAveraging, Optimizer, Schedule, check_averages
from limbeck.spec.overrides import apply_overrides
from limbeck.spec.parallel import Parallel, Replicated, Sharded
from limbeck.spec.placement import Placement, SameDevice, TeacherPool
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.signal import (
    ChunksSignal,
    DenseSignal,
    HardSignal,
    HybridSignal,
    SampledSignal,
    Signal,
    TopKSignal,
    TopPSignal,
)
from limbeck.spec.sinks import Sink
from limbeck.spec.student import Student
from limbeck.spec.teacher import Teacher, model_slug
from limbeck.spec.upcycled_student import UpcycledStudent

STAGE_SEEDS = 1_000_003
"""Between the seeds of stages: more than any study has seeds, so that no stage has another run's."""


class Batch(Spec):
    """Sequences per optimizer step, over all processes, and how many of them go through the student at once."""

    sequences: PositiveInt = 8
    micro_sequences: PositiveInt | None = None
    """None: all of a process's share at once."""


class Evaluation(Spec):
    """When the held-out documents are measured: after every `every` of the budget, and at the end."""

    every: float = Field(0.25, gt=0, le=1)
    kl_to_teacher: bool = True
    """Also measure, at the end, the mean KL(teacher || student) on the held-out documents."""


class Checkpoint(Spec):
    """How often a run can be resumed from: training seconds between checkpoints."""

    seconds: float = Field(60.0, gt=0)


class Recipe(Spec):
    """A student, its texts, its teacher and signal, what it minimises, with what optimizer and for how long."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    student: Student
    initial_weights: str | None = None
    """The run or folder whose weights the student begins with; it may differ in YaRN and windows alone. None: at random, or as
    the student says. What that run has cost is not added to this one's costs."""
    data: Data
    teacher: Teacher | None = None
    signal: Signal | None = None
    store: str | None = None
    """The signal store; None: `<output>/stores/<teacher>-<signal>`, and for chunks the student's tokenizer."""
    objective: Objective
    on_policy: OnPolicy | None = None
    """The student also reads what it or its teacher writes; None: the texts alone."""
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Cosine()
    quantisation_aware: QuantisationAware | None = None
    """Late in the run the student reads with rounded weights; None: never."""
    averaging: Averaging = NoAveraging()
    """Of the weights; the average is what is measured and exported."""
    budget: Budget
    curriculum: tuple[Stage, ...] = ()
    """Stages, one after another, whose shares sum to 1; none: the recipe as it stands, throughout."""
    milestones: tuple[float, ...] = ()
    """Amounts of the budget, in its currency, at which the student is measured and kept as a folder."""
    batch: Batch = Batch()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    parallel: Parallel = Replicated()
    """How processes that `torchrun` started share the student."""
    placement: Placement = SameDevice()
    """Where a live teacher runs."""
    activation_checkpointing: bool = False
    """Blocks keep their inputs alone and compute again in the backward pass: less memory, a third more work, same numbers."""
    compile: bool = False
    """Blocks go through `torch.compile` for training."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the student's matrix products; auto: bfloat16 where a probe finds it faster."""
    device: str = "auto"
    """auto: cuda where there is one, otherwise cpu."""
    seed: int = Field(0, ge=0)
    output: str = "out"
    sinks: tuple[Sink, ...] = ()
    """Where the run's metrics go too, beside its folder."""

    @model_validator(mode="after")
    def _objective_has_its_signal(self) -> Self:
        check_signal(self.objective, self.signal)
        if needs_teacher(self.objective) and self.teacher is None:
            raise ValueError(f"objective.kind={self.objective.kind} needs a teacher: set teacher.kind")
        return self

    @model_validator(mode="after")
    def _what_is_written_is_taught(self) -> Self:
        if self.on_policy is None:
            if needs_samples(self.objective):
                raise ValueError("objective sampled_reverse_kl reads tokens that the student drew: set on_policy")
            return self
        if isinstance(self.signal, ChunksSignal):
            raise ValueError(
                "signal.kind=chunks is about documents of the texts, and on_policy teaches what is written: remove on_policy, "
                "or give the student the teacher's tokenizer (`limbeck transplant`)"
            )
        if not needs_teacher(self.objective) or self.signal is None or not self.signal.live:
            raise ValueError(
                "on_policy needs a teacher that reads what the student writes: set signal.live=true or signal.kind=dense, and "
                "an objective that reads a signal"
            )
        if needs_samples(self.objective) and self.on_policy.sources.student != 1:
            raise ValueError(
                "objective sampled_reverse_kl is about what the student draws: set on_policy.sources to {student: 1}, or use "
                "reverse_kl"
            )
        engine, student = self.on_policy.engine, self.student
        adapted = isinstance(student, HuggingFaceStudent) and student.adapter is not None
        if isinstance(engine, ServerEngine) and engine.refresh_url is not None and adapted:
            raise ValueError(
                "on_policy.engine.refresh_url gives a server the student's weights, which student.adapter is beside: use "
                "engine.kind=transformers, or train without an adapter"
            )
        if self.on_policy.sources.teacher and isinstance(self.placement, TeacherPool):
            raise ValueError("on_policy.sources.teacher needs the teacher in the student's process: set placement.kind=same")
        return self

    @model_validator(mode="after")
    def _writes_as_it_is(self) -> Self:
        if self.on_policy is None:
            return self
        asked = ["compile"] if self.compile else []
        asked += ["parallel.kind=sharded"] if isinstance(self.parallel, Sharded) else []
        asked += ["quantisation_aware"] if self.quantisation_aware is not None else []
        if asked:
            raise ValueError(f"on_policy generates with the student as it is, not with {asked[0]}: remove it")
        self.on_policy.check_sequences(self.batch.sequences)
        return self

    @model_validator(mode="after")
    def _begins_once(self) -> Self:
        if self.initial_weights is not None and isinstance(self.student, HuggingFaceStudent):
            raise ValueError("initial_weights is for students of Limbeck's own kinds: this one begins with student.model")
        if self.initial_weights is not None and isinstance(self.student, UpcycledStudent) and self.student.weights is not None:
            raise ValueError(
                "initial_weights and student.weights both say what the student begins with: initial_weights is for a student "
                "that has its experts already; set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _blocks_are_known(self) -> Self:
        if isinstance(self.student, HuggingFaceStudent) and self.compile:
            raise ValueError("compile is for students of Limbeck's own kinds, not for student.kind=huggingface: remove it")
        return self

    @model_validator(mode="after")
    def _teacher_is_somewhere(self) -> Self:
        live = needs_teacher(self.objective) and not self.uses_store
        if not live and not isinstance(self.placement, SameDevice):
            raise ValueError(
                f"placement.kind={self.placement.kind} says where a live teacher runs, and none does: set signal.live=true, or "
                "placement.kind=same"
            )
        return self

    @model_validator(mode="after")
    def _chunks_are_read_here(self) -> Self:
        if isinstance(self.signal, ChunksSignal) and self.signal.live and isinstance(self.placement, TeacherPool):
            raise ValueError(
                "placement.kind=pool asks for rows of the student's own tokens, which signal.kind=chunks has not: set "
                "placement.kind=same or split, or write a store (signal.live=false)"
            )
        return self

    @model_validator(mode="after")
    def _rounding_begins(self) -> Self:
        if self.quantisation_aware is not None:
            check_begins(self.quantisation_aware, self.schedule)
        return self

    @model_validator(mode="after")
    def _snapshots_are_taken(self) -> Self:
        check_averages(self.averaging, self.schedule)
        return self

    @model_validator(mode="after")
    def _rounding_reaches_what_learns(self) -> Self:
        adapted = isinstance(self.student, HuggingFaceStudent) and self.student.adapter is not None
        if adapted and self.quantisation_aware is not None:
            raise ValueError(
                "quantisation_aware rounds the weights that learn, and student.adapter is not what is kept of them: remove one"
            )
        return self

    @model_validator(mode="after")
    def _tokenizer_is_known(self) -> Self:
        if self.data.tokenizer is None and self.teacher is None and not isinstance(self.student, HuggingFaceStudent):
            raise ValueError("data.tokenizer is missing and there is no teacher to take it from")
        return self

    @model_validator(mode="after")
    def _stages_are_recipes(self) -> Self:
        check_curriculum(self.curriculum)
        stages = self.stages
        if len({needs_hidden_states(recipe.objective) for _, recipe in stages}) > 1:
            raise ValueError(
                "curriculum: an objective of hidden states trains a projection beside the student: let every stage have such a "
                "term, or none"
            )
        if self.curriculum and any(isinstance(recipe.placement, TeacherPool) for _, recipe in stages):
            raise ValueError("curriculum: stages have teachers of their own: set placement.kind=same or split, not pool")
        return self

    @model_validator(mode="after")
    def _milestones_are_reached(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must ascend")
        if self.milestones and not 0 < self.milestones[0] <= self.milestones[-1] <= self.budget.amount:
            raise ValueError(f"milestones are amounts above 0 and at most budget.amount={self.budget.amount:g}")
        return self

    @property
    def stages(self) -> "tuple[tuple[Stage, Recipe], ...]":
        """Every stage with the recipe that it follows, which has no stages itself; without a curriculum, one of all there is.

        A stage that reads other texts than the one before it, or in another shape, reads them in an order of its own, by a seed
        of its own.
        """
        if not self.curriculum:
            return ((Stage(name=self.name, share=1.0), self),)
        found: list[tuple[Stage, Recipe]] = []
        values = self.model_dump(mode="json", exclude={"curriculum", "milestones"})
        for number, stage in enumerate(self.curriculum):
            recipe = _of_stage(values, stage)
            if found and not reads_on(found[-1][1], recipe):
                recipe = recipe.model_copy(update={"seed": self.seed + number * STAGE_SEEDS})
            elif found:
                recipe = recipe.model_copy(update={"seed": found[-1][1].seed})
            found.append((stage, recipe))
        return tuple(found)

    @property
    def uses_store(self) -> bool:
        """Whether training reads a signal store."""
        return needs_teacher(self.objective) and self.signal is not None and not self.signal.live

    @property
    def stores(self) -> tuple[str, ...]:
        """The paths of all signal stores that training reads, in the order of its stages."""
        return tuple(dict.fromkeys(recipe.store_path for _, recipe in self.stages if recipe.uses_store))

    @property
    def read_by_teacher(self) -> tuple[Any, ...]:
        """What a store's rows are about: recipes of which this is equal are served by one pass of the teacher."""
        data, in_chunks = self.data, isinstance(self.signal, ChunksSignal)
        return self.teacher, data.train, data.heldout, data.tokenizer, data.chat_template, in_chunks, self.chunks_for

    @property
    def last_stage(self) -> "Recipe":
        """The recipe of the last stage: its lengths and positions are the student's."""
        return self.stages[-1][1]

    @property
    def signal_slug(self) -> str:
        """The signal as a name for folders: another one for every signal that gives other rows."""
        return "none" if self.signal is None else _slug(self.signal)

    @property
    def store_path(self) -> str:
        """Where the signal store of this recipe lies."""
        if self.store is not None:
            return self.store
        teacher = self.teacher.slug if self.teacher is not None else "none"
        pair = f"-for-{model_slug(self.chunks_for)}" if self.chunks_for is not None else ""
        return f"{self.output}/stores/{teacher}-{self.signal_slug}{pair}"

    @property
    def chunks_for(self) -> str | None:
        """Of chunks, the folder or hub id that the student's tokenizer is from; None where it is the teacher's."""
        if not isinstance(self.signal, ChunksSignal):
            return None
        own = self.student.model if isinstance(self.student, HuggingFaceStudent) else None
        return self.data.tokenizer or own

    @property
    def run_path(self) -> str:
        """Where the run of this recipe lies."""
        return f"{self.output}/runs/{self.name}"


def reads_on(before: Recipe, after: Recipe) -> bool:
    """Whether a stage goes on in the texts where the one before it ended: it reads the same ones, in the same shape."""
    shapes = [(recipe.data, recipe.batch.sequences, recipe.on_policy, recipe.uses_store) for recipe in (before, after)]
    return shapes[0] == shapes[1]


def _of_stage(values: dict[str, Any], stage: Stage) -> Recipe:
    """The recipe of those values with a stage's changes; `ValueError` names the stage and the key."""
    try:
        return Recipe.model_validate(apply_overrides(values, stage.changes))
    except ValidationError as error:
        raise ValueError(f"stage {stage.name}: {one_line(Recipe, error)}") from None
    except SpecError as error:
        raise ValueError(f"stage {stage.name}: {error}") from None


def _slug(signal: Signal) -> str:
    """Kind and sizes, then what departs from the defaults."""
    match signal:
        case TopKSignal(k=k):
            named = [f"topk-{k}"]
        case TopPSignal(p=p, cap=cap):
            named = [f"topp-{_number(p)}-{cap}"]
        case SampledSignal(draws=draws, min_draws=min_draws, full_entropy_nats=full):
            named = [f"sampled-{draws}"]
            named += [f"min{min_draws}"] if min_draws is not None else []
            named += [f"full{_number(full)}"] if full != SampledSignal().full_entropy_nats else []
            named += [f"proposal{_number(signal.proposal_temperature)}"] if signal.proposal_temperature != 1 else []
            named += ["top1"] if signal.keep_top1 else []
        case HybridSignal(k=k, draws=draws):
            named = [f"hybrid-{k}-{draws}"]
        case ChunksSignal(distribution=distribution, k=k):
            named = ["chunks"] + ([] if distribution == "none" else [f"{distribution}-{k}"])
        case HardSignal() | DenseSignal():
            named = [signal.kind]
    if isinstance(signal, SampledSignal | HybridSignal) and signal.seed:
        named.append(f"seed{signal.seed}")
    if not isinstance(signal, HardSignal | ChunksSignal) and signal.temperature != 1:
        named.append(f"t{_number(signal.temperature)}")
    if isinstance(signal, TopKSignal | TopPSignal | HybridSignal) and signal.values != "float16":
        named.append(signal.values)
    return "-".join(named)


def _number(value: float) -> str:
    """The shortest decimal that is this number, as `2` and `0.95` are."""
    return repr(value).removesuffix(".0")
