"""The command line called inside the test's process: what it printed and how it ended."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from limbeck.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong: it is the last on stderr, and stdout is empty."""
        lines = self.err.splitlines()
        assert self.out == ""
        assert "Traceback" not in self.err
        assert [line for line in lines if line.startswith("limbeck: ")] == lines[-1:], self.err
        return lines[-1]


@pytest.fixture
def limbeck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`limbeck("train", recipe, "seed=1")`."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["limbeck", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call
