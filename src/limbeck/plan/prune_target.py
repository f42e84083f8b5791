"""What a pruned model is to come down to: parameters, FLOPs, memory or latency, as a share of the model's own or in full.

A share is a number up to 1 or a percentage (`0.5`, `50%`); anything else is the amount itself, where `70M` is 70 million,
`3.5B` and `3.5G` are 3.5 thousand million, `2GB` bytes and `12ms` milliseconds. Free of torch: all but latency is counted from
a configuration.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from limbeck.errors import SpecError
from limbeck.plan.accounting import teacher_flops_per_token, teacher_parameters
from limbeck.plan.kv_cache import RememberedLayer, kv_bytes, of_config, of_layout
from limbeck.plan.pruned import own_student
from limbeck.spec.base import nearest

Quantity = Literal["parameters", "active_parameters", "flops", "memory", "latency"]
UNITS: dict[Quantity, str] = {"parameters": "", "active_parameters": "", "flops": "FLOPs", "memory": "B", "latency": "ms"}
_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_SHARES = ("", "%")
_COUNT = re.compile(r"[kmgbt]")
_UNIT_OF: dict[Quantity, re.Pattern[str]] = {
    "parameters": _COUNT,
    "active_parameters": _COUNT,
    "flops": re.compile(r"[kmgbt]|[kmgt]?flops"),
    "memory": re.compile(r"[kmgt]?b?"),
    "latency": re.compile("ms"),
}
_EXAMPLES: dict[Quantity, str] = {
    "parameters": "70M or 3.5B",
    "active_parameters": "70M or 3.5B",
    "flops": "2G or 2GFLOPs",
    "memory": "bytes, such as 2GB",
    "latency": "milliseconds, such as 12ms",
}
_AMOUNT = re.compile(r"([0-9.]+(?:e[0-9]+)?)\s*(%|ms|[kmgt]?b|[kmgt]?(?:flops)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """One quantity and what it is to be."""

    quantity: Quantity
    share: float | None = None
    """Of the model's own; None where `amount` says it."""
    amount: float | None = None
    """Parameters, FLOPs a token, bytes or milliseconds."""

    def of(self, whole: float, *, name: str) -> float:
        """The amount, where the model has `whole`; `SpecError` where that is no more."""
        wanted = self.share * whole if self.share is not None else self.amount
        assert wanted is not None, "one of the two is set"
        if wanted >= whole:
            raise SpecError(
                f"target {self.quantity}={self.shown(wanted)} is no less than the {self.shown(whole)} of {name}: ask for less"
            )
        return wanted

    def shown(self, amount: float) -> str:
        """With its unit."""
        return f"{amount:,.4g}ms" if self.quantity == "latency" else f"{amount:,.0f}{UNITS[self.quantity]}"


@dataclass(frozen=True)
class Workload:
    """Under which FLOPs, memory and latency are counted."""

    context: int = 2048
    """Tokens that attention reaches over, and that keys and values are remembered of."""
    batch_size: int = 1
    """Texts at once."""
    bytes_per_number: float = 2.0
    """Of weights, keys and values: bfloat16's."""


@dataclass(frozen=True)
class Costs:
    """Of one model."""

    parameters: int
    active_parameters: int
    """Those that a token touches."""
    flops: float
    """Of a token, forward."""
    memory: float
    """Bytes of weights, keys and values."""


def parse_target(text: str) -> Target:
    """`parameters=0.5`, `memory=2GB`; `SpecError` says what else there is."""
    name, equals, value = text.partition("=")
    if not equals or name not in get_args(Quantity):
        raise SpecError(f"--target {text} is not QUANTITY=AMOUNT{nearest(name, list(get_args(Quantity)))}: parameters=0.5")
    match = _AMOUNT.fullmatch(value.strip())
    number = _number(match[1]) if match else None
    if match is None or not number:
        raise SpecError(f"--target {text}: {value!r} is no amount: write a share (0.5) or a number (70M, 3.5B, 2GB, 12ms)")
    suffix = match[2].lower()
    if suffix not in _SHARES and not _UNIT_OF[_quantity(name)].fullmatch(suffix):
        raise SpecError(
            f"--target {text}: {match[2]} is no unit of {name}: write {_EXAMPLES[_quantity(name)]}, or a share (0.5)"
        )
    if suffix == "%" or (suffix == "" and number <= 1):
        return Target(_quantity(name), share=number / 100 if suffix == "%" else number)
    return Target(_quantity(name), amount=number * _factor(suffix, name))


def costs_of(config: Mapping[str, Any], workload: Workload) -> Costs:
    """Of a config.json; `TeacherError` where its type cannot be counted."""
    parameters = teacher_parameters(config)
    remembered = kv_bytes(remembered_layers(config), tokens=workload.context, bytes_per_number=workload.bytes_per_number)
    return Costs(
        parameters.total,
        parameters.active,
        teacher_flops_per_token(config, context=workload.context),
        parameters.total * workload.bytes_per_number + workload.batch_size * remembered,
    )


def remembered_layers(config: Mapping[str, Any]) -> tuple[RememberedLayer, ...]:
    """What each layer keeps of a token; of our own students from their layout."""
    student = own_student(config)
    return of_config(config) if student is None else of_layout(student.layout)


def _quantity(name: str) -> Quantity:
    return next(each for each in get_args(Quantity) if each == name)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _factor(suffix: str, quantity: str) -> float:
    """`B` alone is thousand millions, but of memory bytes."""
    if suffix == "ms":
        return 1.0
    prefix = suffix.removesuffix("flops")
    if len(prefix) == 2 or (prefix == "b" and quantity == "memory"):
        prefix = prefix.removesuffix("b")
    return _SUFFIXES[prefix]
