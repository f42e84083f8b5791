"""Optimizers, parameter groups, schedules and averages of weights."""

from limbeck.optim.build import build_optimizer
from limbeck.optim.groups import parameter_groups, table, training_bytes

__all__ = ["build_optimizer", "parameter_groups", "table", "training_bytes"]
