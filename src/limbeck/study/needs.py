"""What a study's evaluations need of this machine, asked before hours are spent: packages and files. What only a model can tell
(a chat template, a context that is too short) is asked when the first student is measured.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from limbeck.errors import SpecError
from limbeck.spec.evals import Eval
from limbeck.spec.evals.generation import Generation
from limbeck.spec.evals.gsm import Gsm
from limbeck.spec.evals.harness import Harness
from limbeck.spec.evals.long_context import LongContext


def check_evals(evals: Mapping[str, Eval]) -> None:
    """`SpecError` for the first package or file that an evaluation lacks here."""
    for name, spec in evals.items():
        if isinstance(spec, Harness) and find_spec("lm_eval") is None:
            raise SpecError(f"evals.{name} needs the package lm-eval: pip install 'limbeck[harness]'")
        for key, path in _files(spec):
            if not Path(path).exists():
                raise SpecError(f"evals.{name}.{key}={path} does not exist")


def _files(spec: Eval) -> Iterator[tuple[str, str]]:
    """The keys of a spec that name files, and what they say."""
    match spec:
        case Generation():
            named = {"prompts": spec.prompts, "end_chats": spec.end_chats}
        case Gsm():
            named = {"path": spec.path, "shots_path": spec.shots_path}
        case LongContext():
            named = {"qa_file": spec.qa_file}
        case Harness():
            named = {**{f"files.{place}": file for place, file in enumerate(spec.files)}, "include_path": spec.include_path}
        case _:
            named = {}
    yield from ((key, path) for key, path in named.items() if path is not None)
