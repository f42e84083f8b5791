"""A study: one recipe, what varies (arms, axes, seeds), and what each result is held against.

A cell is one run: an arm with a value on each of its axes and a seed. Cells that differ by their seed alone are a variant.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from limbeck.spec.base import Spec
from limbeck.spec.evals import Eval
from limbeck.spec.launch import Launch, Local

TEACHER_ARM = "teacher.arm"
"""The name of the arm, or the cell, that teaches this one: a key of an arm, or of an axis, that no recipe has."""
STUDENT_ARM = "student.arm"
"""Likewise that whose student this one goes on from, as a model that exists."""
OWN_AXES, OWN_SEEDS = "axes", "seeds"
"""The other two keys of an arm that no recipe has."""
Basis = Literal["tokens", "seconds", "flops"]
"""What a student and its control have had the same of. Of FLOPs, the teacher's are counted to the study's `teacher_share`."""
BASES: tuple[Basis, ...] = ("tokens", "seconds", "flops")
Axis = dict[str, dict[str, Any]]
"""A label for each value of an axis, and the overrides that it stands for."""


class Hardware(Spec):
    """For the hours of a study before it is run."""

    device: str = "h100"
    """A name (`limbeck plan` knows which), or a number of FLOP/s."""
    count: PositiveInt = 1
    utilisation: float = Field(0.4, gt=0, le=1)


class Arm(Spec):
    """Overrides of the recipe, as dotted paths, and what is an arm's own."""

    changes: dict[str, Any] = Field(default_factory=dict)
    teacher: str | None = None
    student: str | None = None
    axes: dict[str, Axis] = Field(default_factory=dict)
    seeds: tuple[int, ...] | None = None


class Study(Spec):
    """`arms` maps a name to overrides of the recipe, as dotted paths, beside which an arm may have

    - `teacher.arm: NAME`: another arm teaches it, by the student that NAME's run leaves;
    - `student.arm: NAME`: it begins with the student that NAME's run leaves, whatever the recipe's own is;
    - `axes` and `seeds` of its own.

    An axis is a dotted path with a list of values, or a name with a mapping from labels to overrides, where one value changes
    several keys. The study's `axes` go to every arm that they change.

    A cell that learns from a teacher gets controls: the same student, seed and texts without a teacher, with the same tokens,
    the same training seconds and the same FLOPs, as `equal` says. Cells share a control wherever it is the same run.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str | None = None
    """What the study is to answer, in words."""
    recipe: str
    """A shipped recipe's name or a file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the recipe for every arm."""
    arms: dict[str, dict[str, Any]] = Field(default={"student": {}}, min_length=1)
    axes: dict[str, Axis] = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    """None: the recipe's."""
    control: str | None = None
    """An arm that the others are compared with, in place of automatic controls."""
    controls: dict[str, str] = Field(default_factory=dict)
    """Arm and its control, where that is another one than `control`; an arm that is its own control is compared with none."""
    equal: tuple[Basis, ...] | None = None
    """Of what automatic controls have the same; None: of all three, or of none where `control` is named."""
    teacher_share: float = Field(1.0, ge=0, le=1)
    """Of the teacher's FLOPs, those that count against the student at equal FLOPs: less where many students share a store."""
    tolerance: float = Field(0.02, gt=0, le=0.2)
    """Costs within this fraction of each other count as equal, so that cells share a control."""
    compare: dict[str, str] = Field(default_factory=dict)
    """Arm and another arm that it is compared with beside its control."""
    evals: dict[str, Eval] = Field(default_factory=dict)
    """What is measured of every student at its end, and of every teacher, by a name of one's own."""
    hardware: Hardware = Hardware()
    launch: Launch = Local()

    @field_validator("axes", mode="before")
    @classmethod
    def _labelled(cls, axes: Any) -> Any:
        return labelled(axes)

    @field_validator("evals", mode="before")
    @classmethod
    def _named_by_kind(cls, evals: Any) -> Any:
        """A list of kinds, or of settings, is named by their kinds."""
        if not isinstance(evals, list | tuple):
            return evals
        settings = [{"kind": each} if isinstance(each, str) else each for each in evals]
        kinds = [each.get("kind") if isinstance(each, Mapping) else None for each in settings]
        if None in kinds or len(set(kinds)) < len(kinds):
            raise ValueError("evals is a list of kinds, each once; to have two of a kind, write a mapping from names to them")
        return dict(zip(kinds, settings, strict=True))

    @model_validator(mode="after")
    def _arms_can_be_read(self) -> Self:
        for name in self.arms:
            self.arm(name)
        for arm, other in self.compare.items():
            if arm == other:
                raise ValueError(f"compare.{arm}={other}: an arm is no different from itself")
        return self

    @model_validator(mode="after")
    def _control_is_an_arm(self) -> Self:
        if self.control is not None and self.control not in self.arms:
            raise ValueError(f"control={self.control} is not one of the arms ({', '.join(self.arms)})")
        if self.control is None and self.controls:
            raise ValueError("controls says where an arm's control is another than `control`: set control too")
        return self

    @model_validator(mode="after")
    def _controls_are_arms(self) -> Self:
        for arm, control in self.controls.items():
            for name in (arm, control):
                if name not in self.arms:
                    raise ValueError(f"controls.{arm}={control}: {name} is not one of the arms")
            if self.control_of(control) != control:
                raise ValueError(f"controls.{arm}={control}: {control} has {self.control_of(control)} as a control itself")
        return self

    @property
    def bases(self) -> tuple[Basis, ...]:
        """Of what automatic controls have the same."""
        if self.equal is not None:
            return self.equal
        return BASES if self.control is None else ()

    def arm(self, name: str) -> Arm:
        """An arm, its own keys told apart from the recipe's; `ValueError` where they say nothing sensible."""
        values = dict(self.arms[name])
        teacher, student, axes, seeds = (values.pop(key, None) for key in (TEACHER_ARM, STUDENT_ARM, OWN_AXES, OWN_SEEDS))
        if seeds is not None and not (isinstance(seeds, list | tuple) and seeds and all(isinstance(s, int) for s in seeds)):
            raise ValueError(f"arms.{name}.seeds={seeds!r} is not a list of whole numbers")
        try:
            own = labelled(axes or {})
        except ValueError as error:
            raise ValueError(f"arms.{name}: {error}") from None
        own_seeds = tuple(seeds) if seeds is not None else None
        return Arm(changes=values, teacher=teacher, student=student, axes=own, seeds=own_seeds)

    def layers_of(self, name: str, changes: Mapping[str, Any] | None = None, *, output: str) -> list[dict[str, Any]]:
        """All that sets an arm's recipe apart, where runs lie under `output`: its overrides, then `changes`, of axes and seed.

        To be applied one after another, so that the later wins whatever the depth of its paths.
        """
        arm = self.arm(name)
        own = {"name": name, "output": output, **arm.changes}
        last = dict(changes or {})
        teacher = last.pop(TEACHER_ARM, arm.teacher)
        if teacher is not None:  # a whole new teacher: what the recipe says of its own means nothing to this one
            own["teacher"] = {"kind": "huggingface", "model": f"{output}/runs/{teacher}/student"}
        student = last.pop(STUDENT_ARM, arm.student)
        if student is not None:
            own["student"] = {"kind": "huggingface", "model": f"{output}/runs/{student}/student"}
        return [own, last]

    def control_of(self, arm: str) -> str | None:
        """The arm that `arm` is compared with, where the study names one. A control is its own."""
        is_control = arm in self.controls.values()
        return self.controls.get(arm, arm if is_control else self.control)


def labelled(axes: Any) -> Any:
    """Axes with a label for each value: of a dotted path with a list, the path's last part and the value."""
    if not isinstance(axes, Mapping):
        raise ValueError("axes maps a dotted path to a list of values, or a name to a mapping from labels to overrides")
    wrong = next((name for name in axes if not isinstance(name, str)), None)
    if wrong is not None:
        raise ValueError(f"axes has the name {wrong!r}, which YAML does not read as text: put it in quotes")
    return {name: _labelled_values(name, values) for name, values in axes.items()}


def _labelled_values(name: str, values: Any) -> Any:
    if isinstance(values, Mapping):
        found = {str(label): changes for label, changes in values.items()}
        wrong = next((label for label, changes in found.items() if not isinstance(changes, Mapping)), None)
        if wrong is not None:
            raise ValueError(f"axes.{name}.{wrong} is not a mapping from dotted paths to values")
    elif isinstance(values, list | tuple):
        deep = next((value for value in values if isinstance(value, Mapping | list | tuple)), None)
        if deep is not None:
            raise ValueError(f"axes.{name} has a value with keys of its own ({deep}): give each value a label, as {{a: {{…}}}}")
        found = {_label(name, value): {name: value} for value in values}
        if len(found) < len(values):
            raise ValueError(f"axes.{name} has the same value twice")
    else:
        raise ValueError(f"axes.{name}={values!r} is not a list of values")
    if len(found) < 2:
        raise ValueError(f"axes.{name} has {len(found)} value: an axis needs two, and a setting for all belongs to `settings`")
    return found


def _label(path: str, value: Any) -> str:
    """`k4`, `amount2e9`; what names itself (an arm, a kind) stands alone."""
    if isinstance(value, str):
        return value.replace("/", "-")
    last = path.rpartition(".")[2]
    if isinstance(value, bool):
        return f"{last}-{'on' if value else 'off'}"
    if value is None:
        return f"{last}-none"
    return f"{last}{f'{value:.6g}'.replace('e+0', 'e').replace('e+', 'e')}"
