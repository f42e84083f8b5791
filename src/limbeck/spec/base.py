"""The base of every spec: frozen, unknown keys rejected with the nearest valid name, errors as one line with the key's path.

A spec says *what* is asked for and nothing else: it imports neither torch nor any part of Limbeck that does work.
"""

import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from limbeck.errors import SpecError


class Spec(BaseModel):
    """A frozen record of what is asked for. Unknown keys are errors; variants are told apart by their `kind`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False)


S = TypeVar("S", bound=Spec)


def parse(spec_class: type[S], values: Mapping[str, Any], *, source: str) -> S:
    """`values` as a `spec_class`; the first thing wrong becomes a `SpecError` of one line: source, key path, remedy."""
    try:
        return spec_class.model_validate(values)
    except ValidationError as error:
        raise SpecError(f"{source}: {one_line(spec_class, error)}") from None


def one_line(root: type[Spec], error: ValidationError) -> str:
    """The first thing wrong: key path, remedy."""
    # Unknown keys first: a misspelt key usually also leaves a required one missing, and the misspelling is the cause.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    path, owner = _walk(root, first["loc"])
    given = first.get("input")
    match first["type"]:
        case "extra_forbidden":
            valid = sorted(owner.model_fields) if owner is not None else []
            return f"{path} is not a key{nearest(path.rsplit('.', 1)[-1], valid)}"
        case "missing":
            return f"{path} is missing"
        case "union_tag_invalid":
            context = first["ctx"]
            kinds = [kind.strip(" '") for kind in str(context["expected_tags"]).split(",")]
            return f"{path}.kind={context['tag']} is not a kind{nearest(str(context['tag']), kinds)}"
        case "union_tag_not_found":
            return f"{path} needs a kind"
        case "value_error":
            return f"{path}: {first['ctx']['error']}" if path else str(first["ctx"]["error"])
        case _:
            return f"{path}={given!r}: {first['msg']}"


def nearest(name: str, valid: list[str], *, shown: list[str] | None = None) -> str:
    """The end of an error sentence: the nearest valid name, and all of them, or what is `shown` in their place."""
    spelt = {each.casefold(): each for each in valid}
    close = [spelt[each] for each in difflib.get_close_matches(name.casefold(), list(spelt), n=1)]
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (valid: {', '.join(shown or valid)})" if valid else hint


def _walk(root: type[Spec], location: tuple[int | str, ...]) -> tuple[str, type[Spec] | None]:
    """The dotted path a user would write for a pydantic location, and the spec class that owns its last key.

    Pydantic puts the tag of a union into the location (`objective.mixture.terms`); a user does not.
    """
    parts: list[str] = []
    choices: list[type[Spec]] = [root]
    owner: type[Spec] | None = root
    for element in location:
        tagged = [choice for choice in choices if kind_of(choice) == element]
        if tagged and len(choices) > 1:
            choices = tagged
            owner = tagged[0]
            continue
        parts.append(str(element))
        if isinstance(element, int):
            continue
        owner = next((choice for choice in choices if element in choice.model_fields), choices[0] if choices else None)
        if owner is not None and element in owner.model_fields:
            choices = spec_classes(owner.model_fields[element].annotation)
    return ".".join(parts), owner


def kind_of(spec_class: type[Spec]) -> str | None:
    """The value of the class's `kind` tag, or None."""
    field = spec_class.model_fields.get("kind")
    return field.default if field is not None else None


def spec_classes(annotation: Any) -> list[type[Spec]]:
    """All spec classes inside an annotation such as `Annotated[A | B, ...] | None` or `tuple[A, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    if typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        return [found for argument in typing.get_args(annotation) for found in spec_classes(argument)]
    return []
