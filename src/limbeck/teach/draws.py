"""What a teacher drew, kept as it was: `drawn.jsonl` grows group by group and is never written anew.

Its first line says what was asked; each line after it is a whole group, so that a kill leaves groups and at most one torn line,
which is cut off when the file is opened again. Log-probs have nine digits, which is every bit of a float32: they are the
teacher's own, at temperature 1 over its whole vocabulary, however the tokens were drawn.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, SpecError
from limbeck.paths import sync
from limbeck.train.rollouts import Continuation

DRAWN = "drawn.jsonl"


@dataclass(frozen=True)
class Drawn:
    """A group of completions."""

    group: int
    seconds: float
    """That it took."""
    continuations: tuple[Continuation, ...]
    """In the order of the group's asks."""


class DrawFile:
    """The file of one folder."""

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        """Open or begin it; `SpecError` where it holds what was asked otherwise."""
        self.path = folder / DRAWN
        folder.mkdir(parents=True, exist_ok=True)
        if not _repaired(self.path):
            self._append({"asked": asked})
            sync(folder)
        there = _first(self.path)
        if there != asked:
            differs = [key for key in {**there, **asked} if there.get(key) != asked.get(key)]
            raise SpecError(
                f"{self.path} was drawn with {_shown(there, differs)}, not with {_shown(asked, differs)}: name another output, "
                "or remove it"
            )

    @property
    def groups(self) -> dict[int, int]:
        """Those that are there, and the tokens in each."""
        return {each.group: sum(len(one.tokens) for one in each.continuations) for each in self.read()}

    def add(self, drawn: Drawn, *, names: Sequence[str]) -> None:
        """Append a group; once this returns it is on the disk. The names of its asks are for people to read."""
        rows = zip(names, drawn.continuations, strict=True)
        draws = [{"name": name, "stopped": one.stopped, "tokens": one.tokens, "log_probs": one.log_probs} for name, one in rows]
        self._append({"group": drawn.group, "seconds": drawn.seconds, "draws": draws})

    def read(self) -> Iterator[Drawn]:
        """All groups, each once, in the order in which they were drawn."""
        return read_draws(self.path)

    def _append(self, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_draws(path: Path) -> Iterator[Drawn]:
    """The groups of a file; `LimbeckError` names the line that is damaged, but for a last one that a kill cut off."""
    seen: set[int] = set()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if number == 1 or not line.endswith("\n"):
                continue
            drawn = _drawn(line, f"{path}, line {number}")
            if drawn.group not in seen:
                seen.add(drawn.group)
                yield drawn


def _drawn(line: str, where: str) -> Drawn:
    try:
        values = json.loads(line)
        draws = values["draws"]
        found = tuple(Continuation(tuple(each["tokens"]), tuple(each["log_probs"]), each["stopped"]) for each in draws)
        return Drawn(int(values["group"]), float(values["seconds"]), found)
    except (ValueError, TypeError, KeyError) as error:
        raise LimbeckError(f"{where} is damaged: remove that line, what it held is then drawn again") from error


def _repaired(path: Path) -> bool:
    """Cut off a torn last line; whether a whole line is left."""
    if not path.is_file():
        return False
    with path.open("rb+") as file:
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(whole)
    return whole > 0


def _first(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        try:
            asked = json.loads(file.readline())["asked"]
        except (ValueError, TypeError, KeyError) as error:
            raise LimbeckError(f"{path} does not say what was asked for: name another output, or remove it") from error
    return dict(asked)


def _shown(asked: dict[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={json.dumps(asked.get(key))}" for key in keys)
