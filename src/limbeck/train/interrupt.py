"""Ctrl-C and SIGTERM between steps: the step at hand is finished and saved, then the run stops.

Stopping inside an optimizer step would leave a student that is neither the one before it nor the one after.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from limbeck.errors import LimbeckError
from limbeck.progress import say


class Interrupted(LimbeckError):
    """A run was asked to stop, and did, without losing anything."""

    exit_code = 130


class EndedEarly(LimbeckError):
    """The processes that this one served have stopped before the end of their run; they say why."""


@dataclass
class Interrupt:
    """Whether a stop has been asked for."""

    asked: bool = False


@contextmanager
def finish_the_step() -> Iterator[Interrupt]:
    """Turn the first SIGINT or SIGTERM into `asked`; a second one stops at once."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        interrupt.asked = True
        say("stopping after this step (once more to stop at once)")
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
