"""Where a live teacher runs beside its student, and who generates."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from limbeck.spec.base import Spec


class SameDevice(Spec):
    """Every process holds student and teacher on its device and uses them in turns."""

    kind: Literal["same"] = "same"


class SplitDevices(Spec):
    """Every process has two devices: the student's, and the teacher's."""

    kind: Literal["split"] = "split"
    teacher_device: str | None = None
    """None: of processes on 2 n CUDA devices the first n hold students, and the teacher of process i is on device n + i."""


class TeacherPool(Spec):
    """Of the processes that `torchrun` started, the last `teachers` hold a teacher and nothing else; the others ask them."""

    kind: Literal["pool"] = "pool"
    teachers: PositiveInt = 1


Placement = Annotated[SameDevice | SplitDevices | TeacherPool, Field(discriminator="kind")]
