"""A design as a study file: what it is and costs in comments, then one line an arm, so that a person can read and edit it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from limbeck.paths import write_atomically
from limbeck.plan.design import Design
from limbeck.plan.family import short


def write_design(design: Design, path: Path) -> None:
    """The design as a study file, with what it is and costs above it; replaces what is there."""
    text = "".join(f"# {line}\n" for line in _header(design, path)) + _as_yaml(design.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def _as_yaml(study: Mapping[str, Any]) -> str:
    """One line an arm."""

    def line(values: Mapping[str, Any]) -> str:
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=True, width=float("inf")).strip()

    plain = {key: value for key, value in study.items() if key not in ("arms", "controls")}
    lines = [yaml.safe_dump(plain, sort_keys=False).rstrip(), "arms:"]
    lines += [f"  {arm}: {line(changes)}" for arm, changes in study["arms"].items()]
    lines += ["controls:", *(f"  {arm}: {control}" for arm, control in study["controls"].items())]
    return "\n".join(lines) + "\n"


def _header(design: Design, path: Path) -> list[str]:
    price, distilled = design.price, sum(arm.teacher is not None for arm in design.arms)
    most = max((store.tokens or 0 for store in price.stores), default=0)
    return [
        f"An experimental design for distillation scaling laws (arXiv 2502.08606): {', '.join(design.protocols)}.",
        f"{len(design.arms)} arms, {distilled} of them distilled, each with its control. "
        f"Base recipe: {design.study['recipe']}. Longest arm: {short(design.longest_tokens)} tokens.",
        f"Price: {_shown(price.training_flops)} FLOPs of training + {_shown(price.scoring_flops)} of scoring "
        f"({len(price.stores)} stores of up to {short(most)} tokens, {_shown(price.store_bytes)} bytes) = "
        f"{_shown(design.total_flops)} FLOPs: {_shown(price.hours)} hours at {price.flops_per_second:.3g} FLOP/s.",
        "Documents shorter than a sequence cost less; training documents of more tokens than a store's cost more, since every "
        "teacher scores all of them.",
        f"Run or resume it: limbeck study run {path}",
    ]


def _shown(amount: float | None) -> str:
    assert amount is not None, "a design's budgets are in tokens and its teachers are arms"
    return f"{amount:,.0f}" if 100 <= amount < 1e6 else f"{amount:.3g}"
