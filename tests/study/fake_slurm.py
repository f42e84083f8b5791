"""Slurm's commands, as far as a study needs them, for one machine: jobs are processes, and start at once.

`python fake_slurm.py sbatch SCRIPT`, `… squeue`, `… scancel OPTIONS NUMBER`; `$FAKE_SLURM` is the folder in which they meet. A
file `down` there keeps the controller from answering, a file `full` keeps jobs waiting.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])


def sbatch(script: str) -> None:
    text = Path(script).read_text(encoding="utf-8")
    if "--partition=none" in text:
        sys.exit("sbatch: error: invalid partition specified: none\nsbatch: error: Batch job submission failed")
    number = str(1 + len(list(HOME.glob("*.sh"))))
    (HOME / f"{number}.sh").write_text(text, encoding="utf-8")
    if not (HOME / "full").exists():
        nowhere = subprocess.DEVNULL
        subprocess.Popen([sys.executable, __file__, "watch", number], start_new_session=True, stdout=nowhere, stderr=nowhere)
        while not (HOME / f"{number}.pid").exists():
            pass
    print(f"Submitted batch job {number}")


def watch(number: str) -> None:
    """The job's process, and its exit code when it has one."""
    script = HOME / f"{number}.sh"
    output = re.search(r"--output=(.*)", script.read_text(encoding="utf-8"))
    assert output is not None
    with Path(output[1]).open("ab") as file:
        job = subprocess.Popen(["bash", script], stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    (HOME / "new").write_text(str(job.pid), encoding="utf-8")
    (HOME / "new").rename(HOME / f"{number}.pid")
    code = job.wait()
    (HOME / f"{number}.code").write_text(str(code), encoding="utf-8")


def state(number: str) -> str:
    if (HOME / f"{number}.cancelled").exists():
        return "CANCELLED"
    if not (HOME / f"{number}.pid").exists():
        return "PENDING"
    if not (HOME / f"{number}.code").exists():
        return "RUNNING"
    return "COMPLETED" if (HOME / f"{number}.code").read_text(encoding="utf-8") == "0" else "FAILED"


def squeue() -> None:
    if (HOME / "down").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
    for script in HOME.glob("*.sh"):
        print(script.stem, state(script.stem))


def scancel(*arguments: str) -> None:
    number, options = arguments[-1], arguments[:-1]
    if options == ("--state=PENDING",) and state(number) == "PENDING":
        (HOME / f"{number}.cancelled").touch()
    if options == ("--batch", "--signal=TERM") and state(number) == "RUNNING":
        with suppress(ProcessLookupError):
            os.kill(int((HOME / f"{number}.pid").read_text(encoding="utf-8")), signal.SIGTERM)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    match name:
        case "sbatch":
            sbatch(*arguments)
        case "squeue":
            squeue()
        case "scancel":
            scancel(*arguments)
        case _:
            watch(*arguments)
