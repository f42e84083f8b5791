"""One pruning from end to end, in memory: what is measured, what is chosen, what is cut; in one step or several."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limbeck.compute import pick_device
from limbeck.data.tokenizers import Tokenizer
from limbeck.plan.prune_steps import in_steps
from limbeck.progress import say
from limbeck.spec.data import Data
from limbeck.spec.prune import BlockInfluence, LossRise, Pruning, TaskScore
from limbeck.surgery.anatomy import Anatomy, anatomy_of
from limbeck.surgery.calibration import calibration_rows, scores_of
from limbeck.surgery.compose import composed
from limbeck.surgery.cut import cut
from limbeck.surgery.depth import choose_layers
from limbeck.surgery.depth_costs import DepthCosts, layers_by_cost
from limbeck.surgery.identity import config_digest
from limbeck.surgery.keep import Kept, choose
from limbeck.surgery.scores import Scores


@dataclass(frozen=True)
class Pruned:
    """A model after pruning, and by what."""

    model: Any
    anatomy: Anatomy
    """Of the model before."""
    kept: Kept
    scores: Scores | None
    """Of the model before."""
    depth: DepthCosts | None = None
    """Where layers were chosen by what they cost: in the first step, of the model before."""


def needs_scores(pruning: Pruning) -> bool:
    """Whether importance is measured: not where all that is asked for is which layers stay, by their places or by a task."""
    chosen = pruning.num_layers is not None and not isinstance(pruning.depth, TaskScore)
    return chosen or any(name != "num_layers" for name in pruning.sizes)


def task_of(pruning: Pruning) -> TaskScore | None:
    """The task that layers are chosen by, if they are."""
    return pruning.depth if pruning.num_layers is not None and isinstance(pruning.depth, TaskScore) else None


def prune(
    model: Any, pruning: Pruning, *, tokenizer: Tokenizer | None, identity: str, data: Data | None, device: torch.device | None
) -> Pruned:
    """The model pruned, each step measured (or remembered), chosen, cut. The model itself is left as it is.

    `identity` tells it from others (`Parent.identity`).
    """
    steps = in_steps(model.config.to_dict(), pruning)
    done: Pruned | None = None
    for number, step in enumerate(steps, 1):
        before = model if done is None else done.model
        if len(steps) > 1:
            say(f"step {number} of {len(steps)}: {', '.join(f'{name}={size}' for name, size in step.sizes.items())}")
            identity = identity if done is None else _digest(before)
        now = _in_one_step(before, step, tokenizer=tokenizer, identity=identity, data=data, device=device)
        done = now if done is None else replace(done, model=now.model, kept=composed(done.kept, now.kept))
    assert done is not None, "there is a step at least"
    return done


def _in_one_step(
    model: Any, pruning: Pruning, *, tokenizer: Tokenizer | None, identity: str, data: Data | None, device: torch.device | None
) -> Pruned:
    scores = None
    if needs_scores(pruning) or task_of(pruning):
        model.to(device or pick_device("auto"))
    if needs_scores(pruning):
        assert tokenizer is not None
        scores = scores_of(model, identity=identity, tokenizer=tokenizer, calibration=pruning.calibration, data=data)
    anatomy = anatomy_of(model)
    layers, depth = _layers(anatomy, scores, pruning, tokenizer=tokenizer, identity=identity, data=data)
    kept = choose(anatomy, scores, pruning, layers=layers)
    return Pruned(cut(model, kept, scores=scores if pruning.fix_norms else None), anatomy, kept, scores, depth)


def _layers(
    anatomy: Anatomy, scores: Scores | None, pruning: Pruning, *, tokenizer: Tokenizer | None, identity: str, data: Data | None
) -> tuple[tuple[int, ...], DepthCosts | None]:
    """Which stay, and what they cost where they are chosen by that."""
    if pruning.num_layers is None or isinstance(pruning.depth, BlockInfluence):
        return choose_layers(anatomy, scores, pruning), None
    assert tokenizer is not None
    rows = calibration_rows(pruning.calibration, tokenizer, data=data) if isinstance(pruning.depth, LossRise) else []
    return layers_by_cost(anatomy, pruning, rows=rows, tokenizer=tokenizer, identity=identity)


def _digest(model: Any) -> str:
    """Of a model that lies in no file."""
    found = hashlib.sha256(config_digest(model.config.to_dict()).encode())
    for name, x in model.state_dict().items():
        found.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode())
        found.update(_bytes(x))
    return found.hexdigest()[:16]


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()  # a number alone has no bytes to view
