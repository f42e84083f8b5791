"""What can be measured of a model once it is trained. Each kind is one spec here and one file in `limbeck.evals`."""

from typing import Annotated

from pydantic import Field

from limbeck.spec.evals.artifact import Artifact
from limbeck.spec.evals.bits_per_byte import BitsPerByte

Eval = Annotated[Artifact | BitsPerByte, Field(discriminator="kind")]
