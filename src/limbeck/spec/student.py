"""What student is asked for: one of the families, or a model that exists.

A family is a spec with defaults, in a module of its own (`limbeck.spec.moe_student`). Whatever it is, it comes down to one
`Layout` (`limbeck.spec.layout`), which says all that the decoder, its parameters, its FLOPs and its export are made from.
Sources of the mathematics are at the parts. The exception is `HuggingFaceStudent`, a model that exists.
"""

from typing import Annotated

from pydantic import Field

from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.ladder_student import LadderStudent
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.parts import Yarn
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.upcycled_student import UpcycledStudent

LaidOutStudent = Olmo3Student | LadderStudent | MoeStudent | GolfStudent | UpcycledStudent
"""Those with a `layout`, which Limbeck builds itself."""
Student = Annotated[LaidOutStudent | HuggingFaceStudent, Field(discriminator="kind")]


def with_yarn(student: LaidOutStudent, yarn: Yarn) -> LaidOutStudent:
    """The same student with stretched positions. Raises `ValueError` where the family has none."""
    match student:
        case Olmo3Student() | LadderStudent():
            return student.model_copy(update={"yarn": yarn})
        case MoeStudent(positions=positions):
            return student.model_copy(update={"positions": positions.model_copy(update={"yarn": yarn})})
        case UpcycledStudent(dense=dense):
            return student.model_copy(update={"dense": with_yarn(dense, yarn)})
        case GolfStudent():
            raise ValueError("a golf student has no yarn: its positions stretch by themselves (ntk_length)")
