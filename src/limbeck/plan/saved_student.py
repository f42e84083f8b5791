"""The student in a config.json of Limbeck's own class."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from limbeck.spec.student import LaidOutStudent


def saved_student(config: Mapping[str, Any]) -> LaidOutStudent | None:
    """What the configuration says of it; None in a configuration of any other class."""
    if config.get("model_type") != "limbeck" or config.get("student") is None:
        return None
    family = Annotated[LaidOutStudent, Field(discriminator="kind")]
    return TypeAdapter[LaidOutStudent](family).validate_python(config["student"])
