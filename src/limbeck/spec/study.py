"""A study: one recipe and the arms that vary it. A control is an arm like the others, and so is an arm that teaches others."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from limbeck.spec.base import Spec

TEACHER_ARM = "teacher.arm"
"""The one key of an arm that no recipe has: the name of the arm that teaches it."""


class Study(Spec):
    """`arms` maps a name to overrides of the recipe, as dotted paths; `control` names the arm without a teacher.

    `teacher.arm: NAME` among an arm's overrides lets another arm teach it: the student that NAME's run leaves.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    recipe: str
    """A shipped recipe's name or a file."""
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    control: str
    controls: dict[str, str] = Field(default_factory=dict)
    """Arm and its control, where that is another one than `control`; an arm that is its own control is compared with none."""

    @model_validator(mode="after")
    def _control_is_an_arm(self) -> Self:
        if self.control not in self.arms:
            raise ValueError(f"control={self.control} is not one of the arms ({', '.join(self.arms)})")
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

    @model_validator(mode="after")
    def _teachers_are_arms(self) -> Self:
        for arm, changes in self.arms.items():
            if TEACHER_ARM in changes and changes[TEACHER_ARM] not in self.arms:
                raise ValueError(f"arms.{arm}: {TEACHER_ARM}={changes[TEACHER_ARM]} is not one of the arms")
        return self

    def control_of(self, arm: str) -> str:
        """The arm that `arm` is compared with. A control is its own."""
        is_control = arm in self.controls.values()
        return self.controls.get(arm, arm if is_control else self.control)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Every control and the arms that are compared with it, itself among them, in the order of `arms`."""
        control_of = {arm: self.control_of(arm) for arm in self.arms}
        return {
            control: tuple(arm for arm in self.arms if control_of[arm] == control)
            for control in dict.fromkeys(control_of.values())
        }

    def overrides_of(self, arm: str, *, output: str) -> dict[str, Any]:
        """All that sets an arm's recipe apart from the study's, where runs lie under `output`."""
        changes: Mapping[str, Any] = self.arms[arm]
        settings = {"name": arm, "output": output, **{key: value for key, value in changes.items() if key != TEACHER_ARM}}
        if TEACHER_ARM in changes:  # a whole new teacher: what the recipe says of its own means nothing to this one
            settings["teacher"] = {"kind": "huggingface", "model": f"{output}/runs/{changes[TEACHER_ARM]}/student"}
        return settings
