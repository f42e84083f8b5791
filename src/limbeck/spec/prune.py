"""What is taken out of a model that exists before its training goes on: channels, neurons, heads, experts, whole layers.

Importance is Minitron's (Muralidharan et al., arXiv 2407.14679; Sreenivas et al., arXiv 2408.11796): forward passes over a
calibration set, scored once and kept, so that every other size of the same model needs no new pass. Sizes that are None stay
as they are in the model.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from limbeck.spec.base import Spec
from limbeck.spec.data import Texts


class Calibration(Spec):
    """The texts over which importance is measured, each cut into rows of `sequence_length` tokens without padding."""

    texts: Texts | None = None
    """None: the recipe's training texts."""
    chats: str | None = None
    """A `.jsonl` file of complete chats (`messages`) that are read besides, end tokens included: without them nothing speaks
    for the channels that stop tokens need. Half the samples, where there are so many."""
    samples: PositiveInt = 512
    """Rows, of 512 to 1,024 that are usual."""
    sequence_length: PositiveInt = 1024
    """Sliding and full layers see the same up to the window: only longer rows tell what a full layer is worth."""


class BlockInfluence(Spec):
    """Layers that change their input least go: 1 - mean cosine of a layer's input and output (ShortGPT, arXiv 2403.03853)."""

    kind: Literal["influence"] = "influence"


class LossRise(Spec):
    """Layers without which the loss on the calibration texts rises least go."""

    kind: Literal["loss"] = "loss"
    rows: PositiveInt = 32
    """Of the calibration rows, so many are read for every candidate."""


class TaskScore(Spec):
    """Layers without which a multiple-choice task is answered best go."""

    kind: Literal["task"] = "task"
    file: str
    """BIG-bench's `task.json`, or JSONL of {question, choices, label}."""
    limit: PositiveInt = 100
    """The first so many questions."""


Depth = Annotated[BlockInfluence | LossRise | TaskScore, Field(discriminator="kind")]


LAYER_CHOICE = ("depth", "contiguous", "keep_first", "keep_last", "drop_types")
"""Keys of `Pruning` that say which layers go where `num_layers` says how many."""


class Pruning(Spec):
    """The sizes that stay, and how it is chosen what they hold."""

    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    """Neurons of each MLP (of a model of experts: of its dense layers and its shared expert's where they have the same)."""
    num_heads: PositiveInt | None = None
    """Query heads; as many of every group that shares keys and values."""
    num_kv_heads: PositiveInt | None = None
    """Groups that share keys and values; their query heads go with them."""
    num_experts: PositiveInt | None = None
    expert_size: PositiveInt | None = None
    """Neurons of each expert."""
    num_layers: PositiveInt | None = None
    layers: tuple[NonNegativeInt, ...] | None = None
    """The layers that stay, by their places from 0, in place of choosing `num_layers` of them."""
    depth: Depth = BlockInfluence()
    """By what layers are chosen."""
    contiguous: bool = False
    """Layers go as one block."""
    keep_first: NonNegativeInt = 1
    keep_last: NonNegativeInt = 1
    """So many of the first and last layers always stay."""
    drop_types: Literal["any", "sliding", "full", "proportional"] = "any"
    """Of interleaved models: which kind of layers may go; 'proportional' takes whole groups of the repeating pattern."""
    hidden_scores: Literal["raw_sum", "normalised_sum"] = "normalised_sum"
    """A channel's scores of all hooks are added as they are (Minitron's), or each hook's over their mean: where the residual
    stream grows with depth, as with norms after the branches, the raw sum is that of the last layers."""
    fix_norms: bool = True
    """Norm weights are multiplied by sqrt(mean square of what stays / mean square of all), measured in calibration: an RMS norm
    over fewer channels divides by another number than the weights were trained with."""
    steps: PositiveInt = 1
    """In so many steps of equal ratio, measuring importance anew before each; without training between them."""
    calibration: Calibration = Calibration()

    @model_validator(mode="after")
    def _takes_something(self) -> Self:
        if not self.sizes and self.layers is None:
            raise ValueError("prune takes nothing away: set a size, such as intermediate_size, or num_layers")
        if self.layers is not None:
            if self.num_layers is not None:
                raise ValueError("layers and num_layers both say which layers stay: set one of them")
            if not self.layers or list(self.layers) != sorted(set(self.layers)):
                raise ValueError("layers are the places of those that stay, each once and in order")
        return self

    @model_validator(mode="after")
    def _chooses_by_all(self) -> Self:
        """A recipe that was written out names every key: only values that are not the defaults were asked for."""
        if self.num_layers is None and (idle := self._asked_among(LAYER_CHOICE)):
            raise ValueError(f"{', '.join(idle)} would do nothing: no layers are chosen; set num_layers, or remove them")
        if self.hidden_size is None and (idle := self._asked_among(("hidden_scores",))):
            raise ValueError(f"{idle[0]} would do nothing: no channels are chosen; set hidden_size, or remove it")
        return self

    def _asked_among(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]

    @property
    def sizes(self) -> dict[str, int]:
        """Those that are asked for, by their keys."""
        names = (
            "hidden_size",
            "intermediate_size",
            "num_heads",
            "num_kv_heads",
            "num_experts",
            "expert_size",
            "num_layers",
        )
        return {name: size for name in names if (size := getattr(self, name)) is not None}
