"""A student that begins with the weights that an earlier run left, or any folder of a student.

What no weight depends on may change on the way: how far layers see (windows), how positions are stretched (YaRN), and what
training alone reads. Everything else must be equal, and what is not is named.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, SpecError
from limbeck.runs import student_folder
from limbeck.spec.base import Spec
from limbeck.spec.layout import Layout
from limbeck.spec.parts import SharedExpert, Yarn
from limbeck.spec.student import LaidOutStudent
from limbeck.students import hf
from limbeck.students.decoder import Decoder, empty_decoder

_MAY_DIFFER = {"window", "yarn"}
_OF_TRAINING = {"init", "lr_base", "head_is_hidden", "router_warmup", "bias_step", "balance_weight"}


@dataclass(frozen=True)
class Start:
    """What a student begins with, before the weights are read."""

    folder: Path
    """Of the student."""
    vocab_size: int
    max_positions: int
    """The longest context that it was trained on."""
    stretched_from: int | None
    """Where it has YaRN already, from which length."""


def find_start(weights: str, *, key: str) -> Start:
    """The student in a run or a folder; `LimbeckError`, with the `key` at fault, where there is none, or it is unfinished."""
    try:
        return _read_start(weights)
    except LimbeckError as error:
        raise type(error)(f"{key}={weights}: {error}") from error


def _read_start(weights: str) -> Start:
    folder = student_folder(weights)
    config = hf.read_config(folder)
    lengths = [yarn.original_length for yarn in yarns(hf.read_spec(folder).layout)]
    return Start(folder, config.vocab_size, config.max_position_embeddings, lengths[0] if lengths else None)


def yarns(layout: Layout) -> list[Yarn]:
    """Of all layers that have one."""
    positions = [layer.attention.positions for layer in layout.layers]
    return [each.yarn for each in positions if each.yarn is not None]


def begin_with(weights: str, spec: LaidOutStudent, *, vocab_size: int, key: str) -> Decoder:
    """The student of `spec` with the weights of a run or folder; `SpecError` names what differs, and the `key` at fault."""
    old, _, its_vocabulary = hf.load(find_start(weights, key=key).folder)
    found = [("vocab_size", its_vocabulary, vocab_size)] if its_vocabulary != vocab_size else []
    for where, there, here in [*found, *_differences(old.layout, spec.layout, "")]:
        raise SpecError(
            f"{key}={weights} holds another student: {where} is {_shown(there)} there and {_shown(here)} in the recipe "
            "(YaRN and windows alone may differ)"
        )
    student = empty_decoder(spec.layout, vocab_size=vocab_size)
    student.to_empty(device="cpu")
    student.load_state_dict(old.state_dict())
    return student


def _differences(there: Any, here: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """(place in the layout, what is there, what is here), for all that a student computes with the same weights."""
    if type(there) is not type(here):
        yield where, there, here
    elif isinstance(there, SharedExpert):
        yield from _differences(there.size, here.size, f"{where}.size")
        yield from _differences(there.share(1.0), here.share(0.0), f"{where}'s share (at the end there, at the start here)")
    elif isinstance(there, tuple):
        yield from _differences(len(there), len(here), f"number of {where}")
        for index, (one, other) in enumerate(zip(there, here, strict=False)):
            yield from _differences(one, other, f"{where}.{index}")
    elif is_dataclass(there) or isinstance(there, Spec):
        names = [each.name for each in fields(there)] if is_dataclass(there) else list(type(there).model_fields)
        for name in sorted(names, key=lambda name: name == "layers"):  # what all layers share says more than one of them
            if name not in _MAY_DIFFER | _OF_TRAINING:
                yield from _differences(getattr(there, name), getattr(here, name), f"{where}.{name}".lstrip("."))
    elif there != here:
        yield where, there, here


def _shown(value: Any) -> str:
    """A number as it is, a part by its name."""
    if isinstance(value, Spec) or is_dataclass(value):
        return type(value).__name__.removesuffix("Layout")
    return repr(value)
