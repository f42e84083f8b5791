"""`limbeck list`: the names that other verbs take."""

from limbeck.cli.arguments import Json
from limbeck.cli.output import emit


def list_names(as_json: Json = False) -> None:
    """Shipped recipes and studies, and the kinds of everything a recipe chooses."""
    from limbeck.plan.devices import DEVICES
    from limbeck.plan.family import FAMILY
    from limbeck.plan.teachers import catalogue
    from limbeck.spec.base import kind_of, spec_classes
    from limbeck.spec.load import eval_kinds, shipped_files
    from limbeck.spec.recipe import Recipe

    fields = Recipe.model_fields
    chosen = ["student", "teacher", "signal", "objective", "optimizer", "schedule", "averaging", "budget"]
    chosen += ["parallel", "placement"]
    kinds: dict[str, list[str | None]] = {
        name: [kind_of(spec) for spec in spec_classes(fields[name].annotation)] for name in chosen
    }
    kinds["eval"] = [*eval_kinds()]
    values = {
        "recipes": shipped_files("recipes"),
        "studies": shipped_files("studies"),
        "catalogue": sorted(catalogue()),
        "family": [member.name for member in FAMILY],
        "devices": [device.name for device in DEVICES],
        "kinds": kinds,
    }
    lines = [f"{key}: {', '.join(map(str, names))}" for key, names in values.items() if key != "kinds"]
    lines += [f"{key}.kind: {', '.join(map(str, names))}" for key, names in kinds.items()]
    emit(values, as_json=as_json, lines=lines)
