"""How the processes of a run share its student."""

from typing import Annotated, Literal

from pydantic import Field

from limbeck.spec.base import Spec


class Replicated(Spec):
    """Every process holds the whole student, its gradients and the optimizer's moments."""

    kind: Literal["replicated"] = "replicated"


class Sharded(Spec):
    """Every process holds its shard of them and gathers a block while it computes (FSDP2); one process holds all."""

    kind: Literal["sharded"] = "sharded"


Parallel = Annotated[Replicated | Sharded, Field(discriminator="kind")]
