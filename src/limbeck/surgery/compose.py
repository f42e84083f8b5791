"""What stays after one cut upon another, by the places of the model before both."""

from torch import Tensor

from limbeck.surgery.keep import Kept, Places

_BY_LAYER = ("neurons", "shared", "heads", "groups", "experts", "expert_neurons")


def composed(first: Kept, then: Kept) -> Kept:
    """`then` is of the model that `first` leaves; the result is of the model before."""
    by_layer = {axis: _places(first, then, axis) for axis in _BY_LAYER}
    return Kept(
        layers=tuple(first.layers[place] for place in then.layers), hidden_D=_of(first.hidden_D, then.hidden_D), **by_layer
    )


def _places(first: Kept, then: Kept, axis: str) -> Places:
    places = tuple(_of(first.of(axis, layer), then.of(axis, place)) for place, layer in enumerate(then.layers))
    return () if all(each is None for each in places) else places


def _of(first: Tensor | None, then: Tensor | None) -> Tensor | None:
    """None: all."""
    if first is None or then is None:
        return then if first is None else first
    return first[then]
