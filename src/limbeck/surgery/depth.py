"""Which layers stay, of those that a recipe lets go (`limbeck.plan.pruned_layers`).

By influence those go that change their input least; as one block, the block whose influences add up to least.
"""

from limbeck.plan.pruned_layers import choice
from limbeck.spec.prune import BlockInfluence, Pruning
from limbeck.surgery.anatomy import Anatomy
from limbeck.surgery.scores import Scores


def choose_layers(anatomy: Anatomy, scores: Scores | None, pruning: Pruning) -> tuple[int, ...]:
    """The places of the layers that stay, ascending. `scores` may be None where the recipe names them, or all stay.

    `SpecError` where fewer may go than are asked to.
    """
    if pruning.layers is not None:
        return pruning.layers
    if pruning.num_layers is None:
        return tuple(range(anatomy.sizes.num_layers))
    found = choice(anatomy.layer_types, pruning)
    if found.going == 0:
        return found.without([])
    assert isinstance(pruning.depth, BlockInfluence), "others are chosen by what they cost (limbeck.surgery.depth_costs)"
    assert scores is not None
    influence = scores.influence_L.tolist()

    def of(layers: tuple[int, ...]) -> float:
        return float(sum(influence[layer] for layer in layers))

    gone = [min(found.blocks(), key=of)] if pruning.contiguous else sorted(found.units, key=of)[: found.going]
    return found.without(gone)
