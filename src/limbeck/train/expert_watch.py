"""How evenly experts are used, and whether routers still choose as they did: at every evaluation, on held-out tokens.

The same tokens every time, in windows of the shortest stage, so that nothing but the student changes: the first `TOKENS` of the
held-out documents. Of each layer with experts:
- `load`: tokens of its busiest expert over the mean; `entropy`: that of the loads over that of even ones; `dead`: the share
  of experts that see less than a tenth of the mean;
- `drift`: the mean over tokens of 1 - |A ∩ B| / k, where A and B are the k experts of a token now and at the evaluation before;
  `drift_from_first`: the same against the first evaluation.

What was chosen is kept in RUN/experts/STEP.npy until the run ends, so that one that resumes compares with what it left.

Shapes: M layers with experts, N tokens, k experts of a token, E experts.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.compute import autocast
from limbeck.data.token_store import TokenStore
from limbeck.runs import Costs, RunWriter
from limbeck.spec.recipe import Recipe
from limbeck.students.decoder import Decoder
from limbeck.train.setup import Setup
from limbeck.train.sharding import head_gathered

TOKENS = 4096
FOLDER = "experts"
_DEAD = 0.1
"""Of the mean load."""


def watch_experts(setup: Setup, recipe: Recipe, costs: Costs, *, path: Path, writer: RunWriter | None) -> None:
    """Record an `experts` event, where the student has some; `recipe` is the whole one.

    Where the student is sharded all processes call it.
    """
    if not isinstance(setup.student, Decoder) or not setup.student.experts():
        return
    length = min(stage.data.sequence_length for _, stage in recipe.stages)
    expert_MNk = chosen_experts(setup, setup.student, length=length)
    if writer is None:
        return
    earlier = [file for file in _kept(path) if int(file.stem) < costs.step]
    first, before = (np.load(file, allow_pickle=False) for file in (earlier[0], earlier[-1])) if earlier else (None, None)
    layers = []
    for layer, (experts, expert_Nk) in enumerate(zip(setup.student.experts(), expert_MNk, strict=True)):
        values: dict[str, float | None] = {**load_of(expert_Nk, experts=experts.layout.num_experts)}
        values["drift"] = drift(before[layer], expert_Nk) if before is not None else None
        values["drift_from_first"] = drift(first[layer], expert_Nk) if first is not None else None
        layers.append(values)
    writer.record_layers("experts", costs, layers, **_means(layers))
    (path / FOLDER).mkdir(exist_ok=True)
    np.save(path / FOLDER / f"{costs.step}.npy", expert_MNk.astype(np.uint16), allow_pickle=False)


def forget_after(path: Path, *, step: int) -> None:
    """Of what was chosen, all that a killed run kept after the step from which it resumes."""
    for file in _kept(path):
        if int(file.stem) > step:
            file.unlink()


def forget_experts(path: Path) -> None:
    """At the end of a run."""
    shutil.rmtree(path / FOLDER, ignore_errors=True)


def load_of(expert_Nk: NDArray[Any], *, experts: int) -> dict[str, float]:
    """How evenly tokens are shared out: `load`, `entropy`, `dead`, as the module says."""
    count_E = np.bincount(expert_Nk.ravel().astype(np.int64), minlength=experts).astype(np.float64)
    share_E = count_E / count_E.sum()
    entropy = float(-(share_E[share_E > 0] * np.log(share_E[share_E > 0])).sum())
    return {
        "load": float(count_E.max() / count_E.mean()),
        "entropy": entropy / math.log(experts) if experts > 1 else 1.0,
        "dead": float((count_E < _DEAD * count_E.mean()).mean()),
    }


def drift(before_Nk: NDArray[Any], now_Nk: NDArray[Any]) -> float:
    """The share of a token's experts that are others than before, the mean over tokens; experts of a token are distinct."""
    same_Nkk = before_Nk[:, :, None] == now_Nk[:, None, :]
    return float(1 - same_Nkk.any(2).mean())


@torch.no_grad()
def chosen_experts(setup: Setup, student: Decoder, *, length: int) -> NDArray[np.int64]:
    """Which experts see each token of the sample, [M, N, k]."""
    found: list[list[NDArray[np.int64]]] = [[] for _ in student.experts()]
    for tokens_T in sample(setup.texts.heldout, length=length):
        tokens_BT = torch.from_numpy(tokens_T.astype(np.int64))[None].to(setup.device)
        with head_gathered(student), _listening(student, found), autocast(setup.dtype, setup.device):
            student(tokens_BT)
    return np.stack([np.concatenate(parts) for parts in found])


def sample(heldout: TokenStore, *, length: int) -> Iterator[NDArray[Any]]:
    """Windows of the first held-out documents, in their order, `TOKENS` in all or as many as there are."""
    left = TOKENS
    for index in range(len(heldout)):
        tokens = heldout.document(index)
        for start in range(0, len(tokens), length):
            if left <= 0:
                return
            window = tokens[start : min(start + length, start + left)]
            left -= len(window)
            yield window


@contextmanager
def _listening(student: Decoder, found: list[list[NDArray[np.int64]]]) -> Iterator[None]:
    """Inside, what each layer's router chooses is added to its list."""

    def listen(layer: int) -> Any:
        return lambda module, inputs, routing: found[layer].append(routing.expert_Nk.cpu().numpy())

    hooks = [experts.router.register_forward_hook(listen(layer)) for layer, experts in enumerate(student.experts())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _means(layers: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Over layers."""
    names = list(layers[0])
    values = {name: [layer[name] for layer in layers] for name in names}
    return {name: None if None in each else float(np.mean(np.array(each, dtype=float))) for name, each in values.items()}


def _kept(path: Path) -> list[Path]:
    """The files of all evaluations so far, in their order."""
    return sorted((path / FOLDER).glob("*.npy"), key=lambda file: int(file.stem))
