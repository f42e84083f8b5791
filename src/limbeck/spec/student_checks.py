"""What sizes several families refuse: rates that cannot stretch, and widths that experts' products cannot group."""

from collections.abc import Mapping


def check_stretches(ntk_length: int | None, *, head_dim: int, key: str) -> None:
    """Rates stretch by an exponent of h / (h - 2): raises `ValueError` where h = 2."""
    if ntk_length is not None and head_dim == 2:
        raise ValueError(f"head_dim=2 leaves no rates for {key} to stretch: use a larger head_dim or {key}=null")


_GROUPED_MULTIPLE = 8
"""Grouped products want rows of whole 16 bytes: so many numbers of bfloat16."""


def check_grouped(sizes: Mapping[str, int]) -> None:
    """Raises `ValueError` where one of these sizes of experts' matrices, by what a recipe calls them, cannot be grouped."""
    for name, size in sizes.items():
        if size % _GROUPED_MULTIPLE:
            raise ValueError(f"{name}={size} is not a multiple of {_GROUPED_MULTIPLE}, as experts' grouped products need")
