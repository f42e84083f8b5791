"""From YAML and `key.path=value` to a `Recipe`, a `Study` or evaluations.

A name without a suffix is looked for among the recipes and studies shipped in the package; anything else is a file. A shipped
recipe may name members: recipes that differ from it by their overrides alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import SpecError
from limbeck.spec.base import kind_of, nearest, parse, spec_classes
from limbeck.spec.evals import Eval
from limbeck.spec.overrides import apply_overrides, deep_copy
from limbeck.spec.recipe import Recipe
from limbeck.spec.study import Study


def load_recipe(name_or_path: str, *layers: Mapping[str, Any] | None) -> Recipe:
    """The recipe of that name or file, with layers of dotted-path overrides applied one after another."""
    values = apply_layers(read_yaml(name_or_path, folder="recipes"), [layer for layer in layers if layer is not None])
    return parse(Recipe, values, source=name_or_path)


def apply_layers(values: Mapping[str, Any], layers: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """`apply_overrides`, one layer after another: what a later one sets stands, whatever lies above or below it."""
    for layer in layers:
        values = apply_overrides(values, layer)
    return values


def load_study(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Study:
    """The study of that name or file, with dotted-path overrides of its own keys applied."""
    values = read_yaml(name_or_path, folder="studies")
    return parse(Study, apply_overrides(values, overrides or {}), source=name_or_path)


def split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of a study's own keys (`launch.jobs`, `seeds`), and those of its recipe's."""
    own = set(Study.model_fields) - set(Recipe.model_fields)
    of_study = {path: value for path, value in overrides.items() if path.partition(".")[0] in own}
    return of_study, {path: value for path, value in overrides.items() if path not in of_study}


def eval_kinds() -> list[str]:
    """What can be evaluated, by the names of `--eval`."""
    return [kind for each in spec_classes(Eval) if (kind := kind_of(each)) is not None]


def load_evals(kinds: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Eval]:
    """One evaluation of each kind under the kind's name; overrides begin with it: `calibration.bins`."""
    classes = dict(zip(eval_kinds(), spec_classes(Eval), strict=True))
    for kind in kinds:
        if kind not in classes:
            raise SpecError(f"{kind} is nothing that can be evaluated{nearest(kind, list(classes))}")
    for path in overrides:
        kind, _, key = path.partition(".")
        if kind not in kinds or not key:
            raise SpecError(f"{path} sets nothing of what is evaluated{nearest(kind, [f'{each}.KEY' for each in kinds])}")
    values = apply_overrides({kind: {"kind": kind} for kind in kinds}, overrides)
    found: dict[str, Any] = {kind: parse(classes[kind], values[kind], source=kind) for kind in kinds}
    return found


def shipped(folder: str) -> list[str]:
    """Names of the recipes or studies that come with the package, members last, in the order of their file."""
    return list(_shipped_values(folder))


def shipped_files(folder: str) -> list[str]:
    """Those that have a file of their own: all but members."""
    names = (entry.name for entry in (resources.files("limbeck") / folder).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_yaml(name_or_path: str, *, folder: str) -> dict[str, Any]:
    """The mapping in a shipped or a user's YAML file."""
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return _read_file(path, source=name_or_path)
    known = _shipped_values(folder)
    if name_or_path not in known:
        hint = nearest(name_or_path, list(known), shown=shown_names(folder))
        raise SpecError(f"{name_or_path} is neither a file nor one of the {folder}{hint}")
    return deep_copy(known[name_or_path])


def shown_names(folder: str) -> list[str]:
    """The shipped names as an error lists them: of a file's members the first and the last."""
    names, files = shipped(folder), shipped_files(folder)
    members = names[len(files) :]
    return [*files, f"{members[0]} to {members[-1]}"] if members else files


def _read_file(path: Path, *, source: str) -> dict[str, Any]:
    if not path.is_file():
        raise SpecError(f"{source} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{source}: not UTF-8 at byte {error.start}; convert the file, for example with iconv") from None
    return _mapping(text, source=source)


def _mapping(text: str, *, source: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        raise SpecError(f"{source}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{source} must hold a mapping of keys to values")
    return values


@cache
def _shipped_values(folder: str) -> dict[str, dict[str, Any]]:
    """Every shipped recipe or study by its name; a file's `members` each with its overrides."""
    found: dict[str, dict[str, Any]] = {}
    members: dict[str, dict[str, Any]] = {}
    for name in shipped_files(folder):
        text = (resources.files("limbeck") / folder / f"{name}.yaml").read_text(encoding="utf-8")
        values = _mapping(text, source=name)
        overrides = values.pop("members", {})
        found[name] = values
        members |= {member: apply_overrides(values, {"name": member, **changes}) for member, changes in overrides.items()}
    return found | members


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`["budget.amount=2e6", …]` as a mapping from path to YAML value."""
    overrides: dict[str, Any] = {}
    for argument in arguments:
        path, equals, value = argument.partition("=")
        if not equals or not path:
            raise SpecError(f"{argument!r} is not of the form key.path=value")
        overrides[path] = _scalar(value, argument)
    return overrides


def _scalar(text: str, argument: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError(f"{argument!r}: the value is not valid YAML") from None
    if isinstance(value, str) and value == text.strip():  # YAML 1.1 reads 2e6 as a string; who means the string quotes it
        try:
            return float(value)
        except ValueError:
            return value
    return value
