"""What is written of a pruning: `pruning.json` for programs (`limbeck show`), README.md for people.

`pruning.json` holds the parent and what was asked for, sizes and parameters before and after, the layers that stayed with all
layers' types and influences (and costs, where they were chosen by those), and on every axis the places that stayed, one list a
layer that stays (null: all of them).
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.surgery.anatomy import anatomy_of
from limbeck.surgery.keep import Places
from limbeck.surgery.prune import Pruned


def record(pruned: Pruned, spec: HuggingFaceStudent, *, weights: str) -> dict[str, Any]:
    """The contents of `pruning.json`, but for its key."""
    assert spec.prune is not None
    anatomy, kept, scores = pruned.anatomy, pruned.kept, pruned.scores
    new = anatomy_of(pruned.model)
    return {
        "parent": {
            "model": spec.model,
            "revision": spec.revision,
            "weights": weights,
            "architecture": type(anatomy.model).__name__,
        },
        "architecture": type(pruned.model).__name__,
        "pruning": spec.prune.model_dump(mode="json"),
        "calibration_tokens": None if scores is None else scores.tokens,
        "before": {"parameters": _parameters(anatomy.model), **asdict(anatomy.sizes), "layer_types": anatomy.layer_types},
        "after": {"parameters": _parameters(pruned.model), **asdict(new.sizes), "layer_types": new.layer_types},
        "influence": None if scores is None else scores.influence_L.tolist(),
        "depth": None if pruned.depth is None else asdict(pruned.depth),
        "routed": None if scores is None else [[int(count) for count in routed_E] for routed_E in scores.routed],
        "kept": {
            "layers": kept.layers,
            "hidden": _list(kept.hidden_D),
            **{name: _lists(getattr(kept, name)) for name in
               ("neurons", "shared", "heads", "groups", "experts", "expert_neurons")},
        },
    }  # fmt: skip


def model_card(about: Mapping[str, Any]) -> str:
    """README.md of the folder."""
    before, after, parent = about["before"], about["after"], about["parent"]
    shown = [name for name in before if name not in ("layer_types", "expert_groups", "experts_per_token")]
    rows = "\n".join(f"| {name} | {before[name]:,} | {after[name]:,} |" for name in shown if before[name] is not None)
    registering = (
        "import limbeck.students.registered  # once, so that transformers knows the class\n"
        if about["architecture"] == "LimbeckForCausalLM"
        else ""
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [limbeck, pruning]
---
# {parent["model"].rsplit("/", 1)[-1]}, pruned

A language model (`{about["architecture"]}`): `{parent["model"]}`, pruned with Limbeck and not trained since. What went and what
stayed is in pruning.json.

| | before | after |
|---|---|---|
{rows}

```python
{registering}from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```
"""


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _list(places: Tensor | None) -> list[int] | None:
    return None if places is None else places.tolist()


def _lists(places: Places) -> list[list[int] | None] | None:
    return [_list(each) for each in places] or None
