"""The fixture that makes arms, each in a folder of its own."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import make_run

from limbeck.report.arms import Arm


@pytest.fixture
def make_arm(tmp_path: Path) -> Callable[..., Arm]:
    folders = (tmp_path / f"run-{number}" for number in itertools.count())

    @functools.wraps(make_run)
    def make(*arguments, **keywords) -> Arm:
        return make_run(next(folders), *arguments, **keywords)

    return make
