"""What can be measured of a model once it is trained. Each kind is one spec here and one file in `limbeck.evals`."""

from typing import Annotated

from pydantic import Field

from limbeck.spec.evals.artifact import Artifact
from limbeck.spec.evals.bits_per_byte import BitsPerByte
from limbeck.spec.evals.calibration import Calibration
from limbeck.spec.evals.copying import Copying
from limbeck.spec.evals.generation import Generation
from limbeck.spec.evals.gsm import Gsm
from limbeck.spec.evals.harness import Harness
from limbeck.spec.evals.latency import Latency
from limbeck.spec.evals.long_context import LongContext

Eval = Annotated[
    Artifact | BitsPerByte | Calibration | Copying | Generation | Gsm | Harness | Latency | LongContext,
    Field(discriminator="kind"),
]
