"""What stays of a model: for each axis the places that score best, in their old order.

Hidden channels have one ranking for the whole model, everything else one a layer. Query heads are ranked within the group that
shares their keys and values, and as many stay in each; groups by all of their heads. Experts that are routed in groups are
ranked within those. Sources: arXiv 2407.14679; NVIDIA Model-Optimizer, `mcore_minitron.py`.

Shapes: L layers that stay, H hooks, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.plan.pruned import Sizes, target_sizes
from limbeck.spec.prune import Pruning
from limbeck.surgery.anatomy import Anatomy
from limbeck.surgery.scores import Scores

Places = tuple[Tensor | None, ...]
"""One a layer that stays, int64; None: all."""


@dataclass(frozen=True)
class Kept:
    """The places that stay, ascending. By layer means: by the layers that stay."""

    layers: tuple[int, ...]
    hidden_D: Tensor | None = None
    neurons: Places = ()
    """Empty, here and below: all, in every layer."""
    shared: Places = ()
    """Neurons of the shared expert."""
    heads: Places = ()
    """Query heads, counted over all groups."""
    groups: Places = ()
    experts: Places = ()
    expert_neurons: Places = ()

    def of(self, axis: str, place: int) -> Tensor | None:
        """What stays on a layer's axis, by the place of the layer among those that stay; None: all."""
        places: Places = getattr(self, axis)
        return places[place] if places else None


def choose(anatomy: Anatomy, scores: Scores | None, pruning: Pruning, *, layers: Sequence[int] | None = None) -> Kept:
    """What stays of a model by its scores, in these layers (None: all).

    `scores` may be None where no width is pruned. `SpecError` for sizes larger than the model's, or that cannot divide.
    """
    layers = tuple(range(anatomy.sizes.num_layers) if layers is None else layers)
    before, after = anatomy.sizes, target_sizes(anatomy.model.config.to_dict(), pruning)
    if not prunes_width(before, after):
        return Kept(layers)
    assert scores is not None, "widths are chosen by scores"
    heads = [_heads(scores, layer, before=before, after=after) for layer in layers]

    def best(name: str, has: int | None, stay: int | None, *, groups: int = 1) -> Places:
        if has == stay or stay is None:
            return ()
        scored = [getattr(scores, name)[layer] for layer in layers]
        return tuple(_best(score, stay, groups=groups) if len(score) else None for score in scored)

    return Kept(
        layers=layers,
        hidden_D=_hidden(scores, pruning, after.hidden_size) if after.hidden_size < before.hidden_size else None,
        neurons=best("neurons", before.intermediate_size, after.intermediate_size),
        shared=best("shared", before.shared_size, after.shared_size),
        heads=tuple(queries for queries, _ in heads) if after.num_heads < before.num_heads else (),
        groups=tuple(groups for _, groups in heads) if after.num_kv_heads < before.num_kv_heads else (),
        experts=best("experts", before.num_experts, after.num_experts, groups=before.expert_groups),
        expert_neurons=best("expert_neurons", before.expert_size, after.expert_size),
    )


def prunes_width(before: Sizes, after: Sizes) -> bool:
    """Whether anything but the number of layers differs."""
    return any(getattr(before, name) != getattr(after, name) for name in before.__dataclass_fields__ if name != "num_layers")


def hidden_score(scores: Scores, pruning: Pruning) -> Tensor:
    """Of each hidden channel, [D]: its scores of all hooks, as they are or each hook's over their mean, added up."""
    hidden_HD = scores.hidden_HD
    if pruning.hidden_scores == "normalised_sum":
        hidden_HD = hidden_HD / hidden_HD.mean(1, keepdim=True)
    return hidden_HD.sum(0)


def _hidden(scores: Scores, pruning: Pruning, stay: int) -> Tensor:
    return _best(hidden_score(scores, pruning), stay)


def _best(score: Tensor, stay: int, *, groups: int = 1) -> Tensor:
    """The places of the `stay` largest, as many from each of `groups` equal parts; of equal ones the first."""
    parts_Gn = score.unflatten(0, (groups, -1))
    first_Gn = parts_Gn.argsort(dim=1, descending=True, stable=True)[:, : stay // groups]
    start_G1 = torch.arange(groups)[:, None] * parts_Gn.shape[1]
    return (first_Gn + start_G1).flatten().sort().values


def _heads(scores: Scores, layer: int, *, before: Sizes, after: Sizes) -> tuple[Tensor, Tensor]:
    """Query heads and groups that stay in a layer."""
    groups = _best(scores.groups[layer], after.num_kv_heads)
    within = _best(scores.heads[layer], before.num_kv_heads * after.queries_per_group, groups=before.num_kv_heads)
    return within[torch.isin(within // before.queries_per_group, groups)], groups
