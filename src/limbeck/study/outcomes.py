"""How cells that did not finish ended: `outcomes/NAME.json` in a study's folder, until they are run again."""

import json
from dataclasses import asdict
from pathlib import Path

from limbeck.paths import write_atomically
from limbeck.study.tasks import Outcome

FOLDER = "outcomes"


def keep_outcome(output: Path, name: str, outcome: Outcome) -> None:
    """Remember how a cell ended."""
    path = output / FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(outcome), ensure_ascii=False))


def forget_outcome(output: Path, name: str) -> None:
    """It is run again, or has finished."""
    (output / FOLDER / f"{name}.json").unlink(missing_ok=True)


def read_outcomes(output: Path) -> dict[str, Outcome]:
    """By cell."""
    return {path.stem: Outcome(**json.loads(path.read_text("utf-8"))) for path in sorted((output / FOLDER).glob("*.json"))}
