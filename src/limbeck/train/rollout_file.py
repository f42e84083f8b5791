"""The rollouts of a run, kept as they were: to be read by people, and by the run itself where it learns from them again.

`RUN/rollouts.jsonl` has a rollout a line; processes beyond the first write `rollouts-RANK.jsonl`. Log-probs have nine digits,
which is every bit of a float32.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.train.rollouts import Continuation, Rollout


class RolloutFile:
    """One process's rollouts."""

    def __init__(self, run: Path, *, rank: int) -> None:
        self.path = run / ("rollouts.jsonl" if rank == 0 else f"rollouts-{rank}.jsonl")

    def add(self, rollouts: Sequence[Rollout]) -> None:
        """Append."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_record(rollout)) + "\n" for rollout in rollouts)

    def read(self) -> Iterator[Rollout]:
        """All, in their order."""
        for _, record in self._lines():
            yield _rollout(record)

    def rewind(self, step: int) -> None:
        """Forget those that were written after `step` steps, and what a kill left of a line."""
        if self.path.is_file():  # steps do not fall from line to line
            os.truncate(self.path, sum(len(line.encode()) for line, record in self._lines() if record["step"] <= step))

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):  # a kill can leave half a line at the end
                    return
                try:
                    record = json.loads(line)
                    _rollout(record)
                except (ValueError, TypeError, KeyError) as error:
                    raise LimbeckError(
                        f"{self.path}, line {number} is damaged: remove the run folder and train again"
                    ) from error
                yield line, record


def forget_processes(run: Path, *, beyond: int, step: int) -> None:
    """Of processes that are no more, which number at least `beyond`, keep what they wrote in the first `step` steps."""
    for path in run.glob("rollouts-*.jsonl"):
        rank = path.stem.removeprefix("rollouts-")
        if rank.isdecimal() and int(rank) >= beyond:
            RolloutFile(run, rank=int(rank)).rewind(step)
            if not path.stat().st_size:
                path.unlink()


def _record(rollout: Rollout) -> dict[str, Any]:
    return {
        "step": rollout.step,
        "writer": rollout.writer,
        "prompt": rollout.prompt,
        "outcome": rollout.outcome,
        "text": rollout.text,
        "prompt_tokens": rollout.prompt_tokens,
        "tokens": rollout.continuation.tokens,
        "log_probs": rollout.continuation.log_probs,
    }


def _rollout(record: dict[str, Any]) -> Rollout:
    tokens, log_probs = tuple(record["tokens"]), tuple(record["log_probs"])
    continuation = Continuation(tokens, log_probs, stopped=record["outcome"] == "stopped")
    prompt = record["prompt"], tuple(record["prompt_tokens"])
    return Rollout(record["step"], record["writer"], *prompt, continuation, record["text"])
