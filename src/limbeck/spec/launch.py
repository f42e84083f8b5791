"""Where the cells of a study run: here, one or several at a time, under `torchrun`, or as Slurm jobs."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, field_validator

from limbeck.spec.base import Spec

OWN_KEYS = {
    "time": "minutes",
    "partition": "partition",
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus",
    "gpus": "gpus",
    "mem": "memory_gib",
}
RELIED_ON = {"array", "chdir", "error", "export", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output"}


class Local(Spec):
    """On this machine. One job runs in the study's own process; several are processes of their own, each with its share of
    the cores, or a GPU where there are any. Sums over other numbers of cores may differ in their last bits."""

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
    """After which Slurm ends a job. Shortly before, it stops after a step, and is submitted again to go on from there."""
    partition: str | None = None
    cpus: PositiveInt = 1
    gpus: int = Field(0, ge=0)
    """Of a job. With more than one, `torchrun` starts a process for each."""
    memory_gib: PositiveInt | None = None
    jobs: PositiveInt = 16
    """Cells that wait or run at once."""
    settings: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of `sbatch`, by their long names, as `{account: …, qos: …, exclusive: true}`."""

    @field_validator("settings")
    @classmethod
    def _not_ours(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Options with a key of their own, and those on which a study relies, are not set twice."""
        for name, value in settings.items():
            option = name.replace("_", "-")
            if option in OWN_KEYS:
                raise ValueError(f"settings.{name} is set by launch.{OWN_KEYS[option]}")
            if value is False:
                raise ValueError(f"settings.{name}=false: sbatch has no such thing as an option that is off; leave it out")
            if option in RELIED_ON:
                raise ValueError(f"settings.{name} cannot be set: a study relies on its own")
        return settings


def _here(launch: Any) -> Any:
    """Without a `kind` it is this machine: `launch.jobs=2` says enough."""
    return {"kind": "local", **launch} if isinstance(launch, Mapping) and "kind" not in launch else launch


Launch = Annotated[Local | Torchrun | Slurm, Field(discriminator="kind"), BeforeValidator(_here)]
