"""Groups of processes that train recipes: imports happen once, then each group is forked, as `torchrun` would start it.

    python several_processes.py PLAN.json

The plan is a list of groups: `processes` and `recipes`, files that they train one after another, and `script`, Python that
each runs before. What a process ends with (its exit code, the errors that it met by recipe) goes to GROUP-RANK.json.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 200
"""Seconds after which processes that have not ended are a failure, also on a busy machine."""


@dataclass(frozen=True)
class Group:
    processes: int
    recipes: Sequence[Path]
    script: str = ""


def several(folder: Path, *groups: Group) -> list[list[dict[str, Any]]]:
    """By group and rank: `code`, and `errors` by recipe."""
    plan = [{"processes": each.processes, "recipes": [*map(str, each.recipes)], "script": each.script} for each in groups]
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, __file__, str(folder / "plan.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = [[folder / f"{number}-{rank}.json" for rank in range(each.processes)] for number, each in enumerate(groups)]
    return [[json.loads(name.read_text(encoding="utf-8")) for name in group] for group in names]


def main(plan: Path) -> None:
    import limbeck.train.train  # before processes are forked

    assert limbeck.train.train
    for number, group in enumerate(json.loads(plan.read_text(encoding="utf-8"))):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        size = group["processes"]
        children = {}
        for rank in range(size):
            child = os.fork()
            if child == 0:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
                member(group["recipes"], group["script"], plan.with_name(f"{number}-{rank}.json"))
            children[child] = plan.with_name(f"{number}-{rank}.json")
        for child, place in children.items():
            _, status = os.waitpid(child, 0)
            if not place.is_file():  # killed
                place.write_text(json.dumps({"code": os.waitstatus_to_exitcode(status), "errors": {}}), encoding="utf-8")


def member(recipes: Sequence[str], script: str, place: Path) -> None:
    """One process. Ends by os._exit: torch's threads sometimes abort an interpreter that leaves in the ordinary way."""
    import torch.distributed as dist

    from limbeck.errors import LimbeckError
    from limbeck.spec.load import load_recipe
    from limbeck.train import serving, train

    signal.alarm(LIMIT)
    errors, code = {}, 0
    serving.leave = train.leave = lambda processes: None  # several recipes share a group
    exec(script, {})
    for file in recipes:
        try:
            train.train(load_recipe(file))
        except LimbeckError as error:
            errors[Path(file).stem], code = str(error), error.exit_code
        except BaseException:
            errors[Path(file).stem], code = traceback.format_exc(), 70
            break
    place.write_text(json.dumps({"code": code, "errors": errors}), encoding="utf-8")
    if not code and dist.is_initialized():
        dist.barrier()
    os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
