"""Where the cells of a study run: here, one or several at a time, under `torchrun`, or as Slurm jobs."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from limbeck.spec.base import Spec


class Local(Spec):
    """On this machine. One job runs in the study's own process; several are processes of their own, each with its share of
    the cores, or a GPU where there are any."""

    kind: Literal["local"] = "local"
    jobs: PositiveInt | Literal["auto"] = 1
    """Cells at once; auto: as many as there are GPUs, or cores, and as fit into memory."""


class Torchrun(Spec):
    """On this machine, one cell after another, each on several processes."""

    kind: Literal["torchrun"] = "torchrun"
    processes: PositiveInt


class Slurm(Spec):
    """Every cell a job of a Slurm cluster, through the package `submitit`; nodes and this machine share the study's folder."""

    kind: Literal["slurm"] = "slurm"
    minutes: PositiveInt
    """After which Slurm ends a job. The same command continues it."""
    partition: str | None = None
    cpus: PositiveInt = 1
    gpus: int = Field(0, ge=0)
    """Of a job. With more than one, `torchrun` starts a process for each."""
    memory_gib: PositiveInt | None = None
    jobs: PositiveInt = 16
    """Cells that wait or run at once."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Further `sbatch` settings, as `{account: …, qos: …}`."""


Launch = Annotated[Local | Torchrun | Slurm, Field(discriminator="kind")]
