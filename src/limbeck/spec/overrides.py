"""Setting dotted paths in nested mappings and lists, as `key.path=value` and the changes of a stage do."""

from collections.abc import Mapping
from typing import Any

from limbeck.errors import SpecError


def apply_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `values` with each dotted path set. In a list the key is a number, from 0: `objective.terms.0.weight`.

    What holds others is set before them. Setting a `kind` to another value starts that mapping afresh, since the keys of one
    kind mean nothing to another; so a kind is set before the keys beside it.
    """
    result = deep_copy(values)
    for path, value in sorted(overrides.items(), key=lambda item: (item[0].count("."), not _is_kind(item[0]))):
        *parents, last = path.split(".")
        node: Any = result
        for depth, parent in enumerate(parents):
            node = _child(node, parent, path=".".join(parents[: depth + 1]))
        key = _key(node, last, path=path)
        if last == "kind" and isinstance(node, dict) and node.get("kind") != value:
            node.clear()
        node[key] = deep_copy(value)  # or a deeper path would be set in what the caller gave
    return result


def _is_kind(path: str) -> bool:
    return path.rpartition(".")[2] == "kind"


def _child(node: Any, key: str, *, path: str) -> Any:
    """What lies under a key; a mapping is made where nothing does."""
    place = _key(node, key, path=path)
    child = node.get(place) if isinstance(node, dict) else node[place]
    if child is None:
        child = node[place] = {}
    if not isinstance(child, dict | list):
        raise SpecError(f"{path} holds a value, not keys, so nothing below it can be set")
    return child


def _key(node: dict[str, Any] | list[Any], key: str, *, path: str) -> str | int:
    """The key of a mapping, or the index of a list, that the last part of `path` means."""
    if isinstance(node, dict):
        return key
    whole = path.rpartition(".")[0]
    if not key.isdecimal() or int(key) >= len(node):
        places = f"0 to {len(node) - 1}" if node else "none yet"
        raise SpecError(f"{path}: {whole} is a list without a place {key} (it has {places}); set {whole} to change it whole")
    return int(key)


def deep_copy(values: Any) -> Any:
    """A copy of which every mapping and list is new."""
    if isinstance(values, Mapping):
        return {key: deep_copy(value) for key, value in values.items()}
    return list(map(deep_copy, values)) if isinstance(values, list | tuple) else values
