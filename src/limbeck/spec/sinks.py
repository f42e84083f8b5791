"""Where else a run's metrics go, beside its own folder: dashboards that are at hand. The run's folder remains what counts."""

from typing import Annotated, Literal

from pydantic import Field

from limbeck.spec.base import Spec


class TensorBoardSink(Spec):
    """Event files for TensorBoard."""

    kind: Literal["tensorboard"] = "tensorboard"
    folder: str | None = None
    """None: `tensorboard` in the run's folder."""


class WandbSink(Spec):
    """Weights & Biases. The key is the package's own affair (`wandb login`, `WANDB_API_KEY`)."""

    kind: Literal["wandb"] = "wandb"
    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class TrackioSink(Spec):
    """Trackio (https://github.com/gradio-app/trackio): a local dashboard, or one in a Hugging Face Space."""

    kind: Literal["trackio"] = "trackio"
    project: str
    space_id: str | None = None


Sink = Annotated[TensorBoardSink | WandbSink | TrackioSink, Field(discriminator="kind")]
