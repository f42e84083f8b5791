"""Which layers of a model may go, before anything is measured: what a recipe protects, and what a pattern of layers allows.

Layers go one by one, or in whole groups of the repeating pattern of an interleaved model ('proportional'), so that the shares
of sliding and full layers stay. `Choice` holds both ways as units, each of which goes as a whole. Free of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.errors import SpecError
from limbeck.spec.prune import Pruning

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Choice:
    """What there is to choose among."""

    num_layers: int
    """Of the whole model."""
    units: tuple[tuple[int, ...], ...]
    """Layers that may go, each unit as a whole, in order."""
    going: int
    """Units that go."""

    def without(self, gone: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The layers that stay where these units go."""
        missing = {layer for unit in gone for layer in unit}
        return tuple(layer for layer in range(self.num_layers) if layer not in missing)

    def blocks(self) -> list[tuple[int, ...]]:
        """Every run of neighbouring layers that could go as one. Raises `SpecError` where there is none so long."""
        runs = [self.units[at : at + self.going] for at in range(len(self.units) - self.going + 1)]
        found = [tuple(layer for unit in run for layer in unit) for run in runs]
        adjacent = [block for block in found if block[-1] - block[0] + 1 == len(block)]
        if not adjacent:
            raise SpecError(
                f"student.prune.contiguous: no {self.going * len(self.units[0])} neighbouring layers may go together: keep "
                "more, or set contiguous=false, drop_types=any, or a smaller keep_first and keep_last"
            )
        return adjacent


def choice(kinds: Sequence[str], pruning: Pruning) -> Choice:
    """What may go of layers of those kinds (transformers' names, one a layer). Raises `SpecError` where too little may."""
    assert pruning.num_layers is not None
    total, going = len(kinds), len(kinds) - pruning.num_layers
    if going < 0:
        raise SpecError(f"student.prune.num_layers={pruning.num_layers} is more than the model's {total}")
    kept = {*range(pruning.keep_first), *range(total - pruning.keep_last, total)}
    units = [unit for unit in _units(kinds, pruning) if not kept.intersection(unit)]
    size = len(units[0]) if units else 1
    if going % size:
        raise SpecError(
            f"student.prune.num_layers={pruning.num_layers} takes {going} of {total} layers, which is no whole number of "
            f"groups of {size}: take a multiple of {size}, or set drop_types to another"
        )
    if going > size * len(units):
        raise SpecError(
            f"student.prune.num_layers={pruning.num_layers} takes {going} of {total} layers, but only {size * len(units)} may "
            f"go (keep_first={pruning.keep_first}, keep_last={pruning.keep_last}, drop_types={pruning.drop_types}): keep more"
        )
    return Choice(total, tuple(units), going // size)


def evenly(kinds: Sequence[str], pruning: Pruning) -> tuple[int, ...]:
    """A guess at what stays, for counting before anything is measured: the units that go lie evenly among those that may."""
    chosen = choice(kinds, pruning)
    places = [(2 * at + 1) * len(chosen.units) // (2 * chosen.going) for at in range(chosen.going)]
    return chosen.without([chosen.units[place] for place in places])


def _units(kinds: Sequence[str], pruning: Pruning) -> list[tuple[int, ...]]:
    if pruning.drop_types == "any":
        return [(layer,) for layer in range(len(kinds))]
    if len(set(kinds)) == 1:
        raise SpecError(
            f"student.prune.drop_types={pruning.drop_types}: all of the model's layers are of one kind ({kinds[0]}): set any"
        )
    if pruning.drop_types == "proportional":
        return _groups(kinds)
    wanted = SLIDING if pruning.drop_types == "sliding" else FULL
    return [(layer,) for layer, kind in enumerate(kinds) if kind == wanted]


def _groups(kinds: Sequence[str]) -> list[tuple[int, ...]]:
    """Whole periods of the shortest pattern that repeats; what is left after the last belongs to none."""
    total = len(kinds)
    period = next(size for size in range(1, total + 1) if all(kinds[at] == kinds[at % size] for at in range(total)))
    return [tuple(range(start, start + period)) for start in range(0, total - period + 1, period)]
