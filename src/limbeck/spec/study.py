"""A study: one recipe and the arms that vary it. The control is an arm like the others."""

from typing import Any, Self

from pydantic import Field, model_validator

from limbeck.spec.base import Spec


class Study(Spec):
    """`arms` maps a name to overrides of the recipe, as dotted paths; `control` names the arm without a teacher."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    recipe: str
    """A shipped recipe's name or a file."""
    arms: dict[str, dict[str, Any]] = Field(min_length=1)
    control: str

    @model_validator(mode="after")
    def _control_is_an_arm(self) -> Self:
        if self.control not in self.arms:
            raise ValueError(f"control={self.control} is not one of the arms ({', '.join(self.arms)})")
        return self
