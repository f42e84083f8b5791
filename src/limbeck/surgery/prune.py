"""One pruning from end to end, in memory: what is measured, what is chosen, what is cut."""

from dataclasses import dataclass
from typing import Any

import torch

from limbeck.compute import pick_device
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import SpecError
from limbeck.spec.data import Data
from limbeck.spec.prune import BlockInfluence, Pruning
from limbeck.surgery.anatomy import Anatomy, anatomy_of
from limbeck.surgery.calibration import scores_of
from limbeck.surgery.cut import cut
from limbeck.surgery.depth import choose_layers
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


def needs_scores(pruning: Pruning) -> bool:
    """Whether anything has to be measured: not where all that is asked for is which layers stay, by their places."""
    chosen = pruning.num_layers is not None and isinstance(pruning.depth, BlockInfluence)
    return chosen or any(name != "num_layers" for name in pruning.sizes)


def prune(
    model: Any, pruning: Pruning, *, tokenizer: Tokenizer | None, weights: str, data: Data | None, device: torch.device | None
) -> Pruned:
    """The model pruned in one step: measured (or remembered), chosen, cut. The model is left as it is."""
    if pruning.steps > 1:
        raise SpecError(f"student.prune.steps={pruning.steps}: pruning is done in one step: set steps=1")
    scores = None
    if needs_scores(pruning):
        assert tokenizer is not None
        model.to(device or pick_device("auto"))
        scores = scores_of(model, weights=weights, tokenizer=tokenizer, calibration=pruning.calibration, data=data)
    anatomy = anatomy_of(model)
    kept = choose(anatomy, scores, pruning, layers=choose_layers(anatomy, scores, pruning))
    return Pruned(cut(model, kept, scores=scores if pruning.fix_norms else None), anatomy, kept, scores)
