"""An experimental design for distillation scaling laws, as a study that `limbeck study run` can run, with its price.

Protocols of arXiv 2502.08606 (section 4 and appendix D), over sizes of its fixed-aspect-ratio family:

- `teachers`: teachers trained alone on so many tokens per parameter (fixed ratio);
- `isoflop-students`: students of several sizes for each compute budget C, D_S = C / (3 F(N_S)), each from every such teacher;
- `isoflop-teachers`: teachers of several sizes for each compute budget, D_T = C / (3 F(N_T)), each into students of fixed
  tokens per parameter;
- `fixed`: teachers and students, both on so many tokens per parameter.

Every distilled student has its control: the same student on the same tokens without a teacher. Equal arms are trained once, so
controls are shared, and a control may be a teacher. N is parameters outside the embeddings, F forward FLOPs per token, D
tokens.

Arms set the depth of the base recipe's student where it is of the family (`kind: ladder`). An OLMo-3 takes the family's sizes;
its norms of queries and keys span the projection, so that its N is greater than the paper's by under 0.1 %.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import SpecError
from limbeck.plan.accounting import student_parameters, training_flops_per_token
from limbeck.plan.family import FAMILY, Member, nearest_member, short
from limbeck.plan.quantities import amount, is_amount
from limbeck.plan.study_price import ArmPrice, StudyPrice, price_study
from limbeck.plan.teachers import find
from limbeck.spec.base import nearest, parse
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.load import apply_layers, load_recipe, read_yaml
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.recipe import Recipe
from limbeck.spec.student import Student
from limbeck.spec.study import TEACHER_ARM, Study
from limbeck.spec.teacher import HuggingFaceTeacher

PROTOCOLS = {
    "teachers": ("teachers",),
    "isoflop-students": ("students", "teachers", "student_flops"),
    "isoflop-teachers": ("students", "teachers", "teacher_flops"),
    "fixed": ("students", "teachers"),
}
"""Every protocol and what has to be given for it."""

TOKENS_PER_PARAMETER = 20.0
DRAWS = 50
SAME_FOR_ALL = {"num_heads", "num_kv_heads", "vocab_size", "tied_embeddings"}
"""Fields of a student that all sizes share: left to the base recipe where it says the same."""
OVERLAP_SHARE = 8
"""A teacher reads long documents in windows as long as a sequence, an eighth of which it has read before."""


@dataclass(frozen=True)
class Grid:
    """What a design varies. Tokens per parameter are a model's own; FLOPs are of one model's training."""

    students: tuple[Member, ...] = ()
    teachers: tuple[Member, ...] = ()
    student_flops: tuple[float, ...] = ()
    teacher_flops: tuple[float, ...] = ()
    student_tokens_per_parameter: tuple[float, ...] = (TOKENS_PER_PARAMETER,)
    teacher_tokens_per_parameter: tuple[float, ...] = (TOKENS_PER_PARAMETER,)
    protocols: tuple[str, ...] | None = None
    """Of `PROTOCOLS`; None: all for which something is given."""


@dataclass(frozen=True)
class Design:
    """A study, as the mapping that its file holds, and what it costs."""

    study: dict[str, Any]
    price: StudyPrice
    protocols: tuple[str, ...]
    longest_tokens: int
    """Of the longest arm: the training documents should hold as many, or they are repeated."""

    @property
    def arms(self) -> tuple[ArmPrice, ...]:
        """What each arm costs: teachers first, then controls, then distilled students."""
        return self.price.arms

    @property
    def total_flops(self) -> float:
        """Training of every arm, and one scoring by each teacher."""
        total = self.price.total_flops
        assert total is not None, "a design's budgets are in tokens and its teachers are arms"
        return total


@dataclass(frozen=True)
class _Alone:
    """A model trained on the text."""

    member: Member
    tokens: int


@dataclass(frozen=True)
class _Taught:
    """A student distilled from a teacher, and its control: the same student on the same tokens."""

    control: _Alone
    teacher: _Alone


@dataclass(frozen=True)
class _Base:
    """The recipe that the arms vary."""

    values: dict[str, Any]
    recipe: Recipe
    vocab_size: int

    def sizes(self, member: Member) -> dict[str, Any]:
        """A member as fields of a student."""
        shared = {"num_heads": member.num_heads, "vocab_size": self.vocab_size, "tied_embeddings": True}
        match self.recipe.student:
            case LadderStudent(hidden_size=None):
                return {"num_layers": member.num_layers, **shared}
            case Olmo3Student():
                return {
                    "hidden_size": member.hidden_size,
                    "num_layers": member.num_layers,
                    "num_kv_heads": member.num_heads,
                    "head_dim": member.head_dim,
                    "intermediate_size": member.intermediate_size,
                    **shared,
                }
            case LadderStudent():
                raise SpecError(f"{self.recipe.name}: student.hidden_size fixes the width that a design varies: remove it")
            case other:
                raise SpecError(
                    f"{self.recipe.name}: student.kind={other.kind} has no sizes of the family: make it ladder or olmo3"
                )

    def params(self, member: Member) -> int:
        """N of a member as a student."""
        return student_parameters(self._student(member), vocab_size=self.vocab_size).non_embedding

    def training_flops_per_token(self, member: Member) -> float:
        """3 F(N) of a member as a student."""
        context = self.recipe.data.sequence_length
        return training_flops_per_token(self._student(member), vocab_size=self.vocab_size, context=context)

    def _student(self, member: Member) -> Student:
        return self.recipe.student.model_copy(update=self.sizes(member))


def member_of(text: str, *, source: str) -> Member:
    """The family member that `text` means: a name (`ladder-198m`), whole layers (`layers=2`), or the nearest to a size (`2M`).

    The family is taken beyond the paper's 8 to 40 layers, down to one: a size is the nearest in ratio of them all. `SpecError`
    naming `source` where `text` is none of these.
    """
    named = {member.name: member for member in FAMILY}
    if text.lower() in named:
        return named[text.lower()]
    key, _, layers = text.partition("=")
    if key == "layers" and layers.isdecimal() and int(layers) > 0:
        return Member(int(layers))
    if is_amount(text):
        return nearest_member(amount(text, source=source))
    hint = nearest(text, list(named), shown=[f"{FAMILY[0].name} to {FAMILY[-1].name}"])
    raise SpecError(f"{source}={text} is no size (198M), family member or layers=NUMBER{hint}")


def design(
    grid: Grid,
    *,
    recipe: str = "laws",
    name: str = "laws",
    vocab_size: int | None = None,
    unique_tokens: float | None = None,
    flops_per_second: float,
) -> Design:
    """The study of a grid, on a base recipe (a shipped name or a file), priced on a device of `flops_per_second`.

    `vocab_size` is the base recipe's, or that of its teacher in the catalogue, unless given. `unique_tokens` is how many tokens
    its training documents have, all of which every teacher scores once; None: what `data.train.sample_tokens` says, otherwise
    as many as the longest arm that reads a store. Raises `SpecError` for a grid that makes no arm, or one of less than a step.
    """
    base = _base(recipe, vocab_size=vocab_size)
    protocols = _protocols(grid)
    taught, teachers = _cells(grid, base, protocols)
    alone = list(dict.fromkeys([*teachers, *(cell.control for cell in taught)]))
    _require_a_step(alone, base)
    names = _names(alone, teachers=set(teachers))
    arms = {names[cell]: _alone_arm(cell, base) for cell in alone}
    controls = {arm: arm for arm in arms}
    for cell in taught:
        arm = f"{names[cell.control].partition('-')[2]}-from-{names[cell.teacher].partition('-')[2]}"
        arms[arm] = _taught_arm(cell, base, teacher=names[cell.teacher])
        controls[arm] = names[cell.control]
    study = {"name": name, "recipe": recipe, "control": next(iter(arms)), "controls": controls, "arms": arms}
    price = _price(study, base, flops_per_second=flops_per_second, unique_tokens=unique_tokens)
    return Design(study, price, protocols, max(cell.tokens for cell in alone))


def _base(recipe: str, *, vocab_size: int | None) -> _Base:
    values, loaded = read_yaml(recipe, folder="recipes"), load_recipe(recipe)
    teacher = loaded.teacher
    known = None
    if teacher is not None:
        known = find(teacher.model if isinstance(teacher, HuggingFaceTeacher) else teacher.model_slug)
    size = vocab_size or loaded.student.vocab_size or (known or {}).get("vocab_size")
    if size is None:
        raise SpecError(f"{recipe}: {loaded.student.vocab_size_key} is not set, so nothing can be priced: set it in the recipe")
    return _Base(values, loaded, int(size))


def _protocols(grid: Grid) -> tuple[str, ...]:
    """The grid's protocols; `SpecError` for one that lacks an input, and for an input that none of them uses."""
    given = {option for options in PROTOCOLS.values() for option in options if getattr(grid, option)}
    chosen = grid.protocols or tuple(protocol for protocol, needs in PROTOCOLS.items() if given.issuperset(needs))
    for protocol in chosen:
        if protocol not in PROTOCOLS:
            raise SpecError(f"protocol {protocol} is not known{nearest(protocol, list(PROTOCOLS))}")
        if lacking := [option for option in PROTOCOLS[protocol] if option not in given]:
            raise SpecError(f"protocol {protocol} needs {_options(lacking)}")
    unused = sorted(given - {option for protocol in chosen for option in PROTOCOLS[protocol]})
    if unused or not chosen:
        raise SpecError(
            f"{_options(unused) or 'this'} makes no arm: "
            + "; ".join(f"{protocol} needs {_options(needs)}" for protocol, needs in PROTOCOLS.items())
        )
    return chosen


def _options(names: Iterable[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def _cells(grid: Grid, base: _Base, protocols: Sequence[str]) -> tuple[list[_Taught], list[_Alone]]:
    """The distilled students and every teacher, with repeats."""
    teachers = _by_ratio(grid.teachers, grid.teacher_tokens_per_parameter, base)
    students = _by_ratio(grid.students, grid.student_tokens_per_parameter, base)
    pairs = {
        "teachers": ([], teachers),
        "isoflop-students": (_by_flops(grid.students, grid.student_flops, base), teachers),
        "isoflop-teachers": (students, _by_flops(grid.teachers, grid.teacher_flops, base)),
        "fixed": (students, teachers),
    }
    wanted = [pairs[protocol] for protocol in protocols]
    taught = [_Taught(control, teacher) for controls, teaching in wanted for control in controls for teacher in teaching]
    return taught, [teacher for _, teaching in wanted for teacher in teaching]


def _by_ratio(members: Sequence[Member], ratios: Sequence[float], base: _Base) -> list[_Alone]:
    return [_Alone(member, round(ratio * base.params(member))) for ratio in ratios for member in members]


def _by_flops(members: Sequence[Member], budgets: Sequence[float], base: _Base) -> list[_Alone]:
    return [_Alone(member, round(flops / base.training_flops_per_token(member))) for flops in budgets for member in members]


def _require_a_step(cells: Sequence[_Alone], base: _Base) -> None:
    step = base.recipe.batch.sequences * base.recipe.data.sequence_length
    for cell in cells:
        if cell.tokens < step:
            raise SpecError(
                f"{cell.member.name} on {cell.tokens:,} tokens: a step of {base.recipe.name} takes {step:,}; raise its FLOPs "
                "or tokens per parameter, or lower batch.sequences in the recipe"
            )


def _names(cells: Sequence[_Alone], *, teachers: set[_Alone]) -> dict[_Alone, str]:
    """`teacher-546m-10.9b`, `control-198m-4b`; all digits of tokens that three would not tell apart."""
    shown = [(cell.member, short(cell.tokens)) for cell in cells]
    names = {}
    for cell, (member, tokens) in zip(cells, shown, strict=True):
        role = "teacher" if cell in teachers else "control"
        told = tokens if shown.count((member, tokens)) == 1 else str(cell.tokens)
        names[cell] = f"{role}-{short(member.params)}-{told}".lower()
    return names


def _alone_arm(cell: _Alone, base: _Base) -> dict[str, Any]:
    others = {"evaluation.kl_to_teacher": False} if base.recipe.teacher is not None else {}
    return {**_common(cell, base, objective="ce"), **others}


def _taught_arm(cell: _Taught, base: _Base, *, teacher: str) -> dict[str, Any]:
    length = base.recipe.data.sequence_length
    signal = {"signal.kind": "sampled", "signal.draws": DRAWS} if base.recipe.signal is None else {}
    return {
        **_common(cell.control, base, objective="forward_kl"),
        TEACHER_ARM: teacher,
        "teacher.context.window": length,
        "teacher.context.overlap": length // OVERLAP_SHARE,
        **signal,
    }


def _common(cell: _Alone, base: _Base, *, objective: str) -> dict[str, Any]:
    sizes = base.sizes(cell.member)
    said_by_base = {key for key in SAME_FOR_ALL & sizes.keys() if getattr(base.recipe.student, key) == sizes[key]}
    return {
        **{f"student.{key}": value for key, value in sizes.items() if key not in said_by_base},
        "budget.kind": "tokens",
        "budget.amount": cell.tokens,
        "objective.kind": objective,
        "objective.z_loss_weight": base.recipe.objective.z_loss_weight,  # another kind would start without it
    }


def _price(study: Mapping[str, Any], base: _Base, *, flops_per_second: float, unique_tokens: float | None) -> StudyPrice:
    checked = parse(Study, study, source="design")
    taught_by = {arm: changes[TEACHER_ARM] for arm, changes in checked.arms.items() if TEACHER_ARM in changes}
    recipes = {
        arm: parse(Recipe, apply_layers(base.values, checked.layers_of(arm, output="out")), source=f"design, arm {arm}")
        for arm in checked.arms
    }
    return price_study(recipes, taught_by=taught_by, configs={}, flops_per_second=flops_per_second, unique_tokens=unique_tokens)
