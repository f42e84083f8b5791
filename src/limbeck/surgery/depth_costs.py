"""Layers chosen by what bypassing them costs: the loss on calibration rows, or the answers of a multiple-choice task.

Costs are kept in the user cache under all that they depend on, so that another number of layers, or the same once more, takes
no pass again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from limbeck.data.tokenizers import Tokenizer
from limbeck.paths import cache_folder
from limbeck.plan.pruned_layers import choice
from limbeck.spec.prune import LossRise, Pruning, TaskScore
from limbeck.surgery.anatomy import Anatomy
from limbeck.surgery.bypass import ModelReader
from limbeck.surgery.cheapest import Cheapest, Cost, cheapest
from limbeck.surgery.identity import digest_of
from limbeck.surgery.loss_rise import LossCost
from limbeck.surgery.task_score import TaskCost, read_task

FORMAT = 3
"""Of costs: another one where they are measured otherwise."""
TASK_KEY = "student.prune.depth.file"


@dataclass(frozen=True)
class DepthCosts:
    """What candidates cost, for the record."""

    measures: tuple[str, ...]
    """What each number of a cost is."""
    costs: tuple[tuple[tuple[int, ...], Cost], ...]
    """Of every candidate: the layers that were bypassed together."""


def layers_by_cost(
    anatomy: Anatomy, pruning: Pruning, *, rows: Sequence[Tensor], tokenizer: Tokenizer, identity: str
) -> tuple[tuple[int, ...], DepthCosts]:
    """The places of the layers that stay, ascending, and what the candidates cost. `rows` are those of the calibration.

    `identity` tells the model from others. `SpecError` where fewer may go than are asked to, `DataError` for a file without
    questions.
    """
    found = choice(anatomy.layer_types, pruning)
    reader = ModelReader(anatomy.model)
    cost: LossCost | TaskCost
    match pruning.depth:
        case LossRise(rows=count):
            read = sample(rows, count)
            cost, title = LossCost(reader, anatomy.layers, read), "loss without layers"
            seen = hashlib.sha256(b"".join(row.numpy().tobytes() for row in read)).hexdigest()
        case TaskScore(file=file, limit=limit):
            problems = read_task(file, limit=limit, key=TASK_KEY)
            cost, title = TaskCost(reader, anatomy.layers, problems, tokenizer), "answers without layers"
            seen = f"{tokenizer.fingerprint} {problems!r}"
        case other:
            raise AssertionError(f"{other.kind} is no cost")
    model = [identity, str(anatomy.head.dtype)]
    key = digest_of({"format": FORMAT, "model": model, "kind": pruning.depth.kind, "read": seen})
    remembered = cache_folder() / "surgery" / f"depth-{key}.json"
    best: Cheapest = cheapest(found, cost, contiguous=pruning.contiguous, title=title, remembered=remembered)
    return best.stay, DepthCosts(cost.measures, tuple(best.costs.items()))


def sample(rows: Sequence[Tensor], count: int) -> list[Tensor]:
    """So many of the rows, evenly from first to last: the chats come last."""
    step = max(1, len(rows) // count)
    return list(rows[::step][:count])
