"""What can be measured of a model once it is trained. Each kind is one spec here and one file in `limbeck.evals`."""

from typing import Annotated

from pydantic import Field

from limbeck.spec.evals.bits_per_byte import BitsPerByte
from limbeck.spec.evals.harness import Harness
from limbeck.spec.evals.long_context import LongContext

Eval = Annotated[BitsPerByte | Harness | LongContext, Field(discriminator="kind")]
