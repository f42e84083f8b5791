"""A user's own loss: found by its name, called, and what it returns checked. How to write one: `docs/objectives.md`.

Whatever is wrong with it becomes a `SpecError` of one sentence, with the line of the user's file where there is one.

Shapes: T positions.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from limbeck.errors import SpecError
from limbeck.objectives.head import HeadStatistics
from limbeck.signals.types import SparseTarget
from limbeck.spec.objective import Custom, Objective, terms

CustomLoss = Callable[[HeadStatistics, SparseTarget | None], Tensor]


def load_functions(objective: Objective) -> None:
    """Load the function of every custom term, so that one that cannot be had is found before anything else is opened."""
    for weighted in terms(objective):
        if isinstance(weighted.term, Custom):
            load_function(weighted.term.function)


@cache
def load_function(name: str) -> CustomLoss:
    """The function that `package.module:name` names. The module may lie in the working directory."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(_imported(module), attribute)
    except Exception as error:  # an import runs whatever the file holds
        raise SpecError(
            f"objective.function={name} cannot be loaded ({type(error).__name__}: {error}): write package.module:name, of a "
            "module that is installed or lies in the working directory"
        ) from error
    if not callable(function):
        raise SpecError(f"objective.function={name} is of type {type(function).__name__}: name a function")
    return function


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if error.name != module.partition(".")[0] or here in sys.path:
            raise
        # An installed script has its own folder on the path, and not the one that it is called from.
        sys.path.append(here)
        return importlib.import_module(module)


def custom_loss(name: str, *, student: HeadStatistics, target: SparseTarget | None) -> Tensor:
    """What the function `name` says of each position: [T], float, with a gradient where the student's statistics have one."""
    function = load_function(name)
    try:
        loss_T = function(student, target)
    except Exception as error:
        raise SpecError(
            f"objective.function={name} raised {type(error).__name__}{_line(error, function)} ({error}): it is called with "
            "the student's HeadStatistics and the teacher's SparseTarget, or None where signal.kind=dense"
        ) from error
    wrong = _wrong(loss_T, student.lse_T)
    if wrong:
        raise SpecError(f"objective.function={name} returned {wrong}: return nats per token, without a mean")
    return loss_T


def _wrong(loss_T: object, lse_T: Tensor) -> str:
    """What keeps a result from being a loss per position; empty where nothing does."""
    if not isinstance(loss_T, Tensor):
        return f"{type(loss_T).__name__} and not a tensor"
    if loss_T.shape != lse_T.shape:
        return f"the shape {tuple(loss_T.shape)} for {len(lse_T)} positions"
    if not loss_T.is_floating_point():
        return f"a tensor of {loss_T.dtype}"
    if torch.is_grad_enabled() and lse_T.requires_grad and not loss_T.requires_grad:
        return "a tensor without a gradient (is something detached, or a step not differentiable?)"
    return ""


def _line(error: Exception, function: CustomLoss) -> str:
    """Where in the function's own file it was raised."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" at {Path(file).name}:{lines[-1]}" if file and lines else ""
