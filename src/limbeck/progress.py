"""Progress on stderr, so that stdout stays free for results: a bar on a terminal, a line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_SECONDS = 15.0
_STDERR = Console(stderr=True)  # one for all bars: a bar inside another's time is then drawn below it


def is_first_process() -> bool:
    """Whether this process speaks: with `torchrun`, one of several does."""
    return os.environ.get("RANK", "0") == "0"


class Advance(Protocol):
    """Call with how much more is done, and what to show beside the bar."""

    def __call__(self, amount: float, note: str = "") -> None: ...


@contextmanager
def progress(title: str, *, total: float, done: float = 0) -> Iterator[Advance]:
    """Show how far a long piece of work is. Yields the function to call as it goes."""
    if not is_first_process():
        yield lambda amount, note="": None
        return
    if sys.stderr.isatty():
        note_column = TextColumn("{task.fields[note]}")
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), note_column)
        with Progress(*columns, console=_STDERR) as bars:
            task = bars.add_task(title, total=total, note="")
            bars.update(task, completed=done)
            yield lambda amount, note="": bars.update(task, advance=amount, note=note)
        return
    lines = _Lines(title, total, done)
    yield lines.advance
    lines.show()


class _Lines:
    """Progress for logs: at most a line every `LINE_SECONDS`."""

    def __init__(self, title: str, total: float, done: float) -> None:
        self.title, self.total, self.done, self.note = title, total, done, ""
        self.shown = time.monotonic()

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        self.note = note
        if time.monotonic() - self.shown >= LINE_SECONDS:
            self.show()

    def show(self) -> None:
        share = 100 * self.done / self.total if self.total else 100.0
        print(f"{self.title}: {min(share, 100):.0f}% {self.note}".rstrip(), file=sys.stderr, flush=True)
        self.shown = time.monotonic()


def say(line: str) -> None:
    """One line of news for a person, on stderr."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)
