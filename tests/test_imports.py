"""What is imported when, and what is never done with files from elsewhere."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import limbeck
from limbeck.spec.base import spec_classes
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import HuggingFaceTeacher

SOURCE = Path(limbeck.__file__).parent
WITHOUT_TORCH = """
import contextlib, importlib, io, json, sys

def imported():
    return sorted({"torch", "transformers"} & set(sys.modules))

found, codes = {}, {}
plan = ["plan", "--student", "1B"]
for arguments in (
    ["--help"], ["train", "--help"], ["teach-text", "--help"], ["list"], ["plan", "teachers"], ["lab", "--help"],
    ["fit", POINTS, *FIT],
    plan, [*plan, "--flops", "1e21"], [*plan, "--loss", "2.3"], [*plan, "--tokens", "5B", "--teachers", "olmo3-7b"],
    ["plan", "cache", "--teacher", "olmo3-7b", "--student", "1B", "--tokens", "1B"], ["show", "nano", "signal.k=0"],
):
    from limbeck.cli.main import main
    sys.argv = ["limbeck", *arguments]
    name, code = " ".join(arguments), 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    found[name], codes[name] = imported(), code
modules = (
    "limbeck.plan.figures.all", "limbeck.plan.fit.fitting", "limbeck.report.study_page", "limbeck.runs", "limbeck.plan.price",
    "limbeck.study.run", "limbeck.spec.study",
)
for module in modules:
    importlib.import_module(module)
    found[module] = imported()
print(json.dumps([found, codes]))
"""


def test_what_computes_nothing_imports_neither_torch_nor_transformers() -> None:
    points = Path(__file__).parent / "plan" / "data" / "chinchilla_epoch_svg.csv"
    columns = ["--columns", "N=Model Size,D=`Training FLOP`/(6*N),loss=loss", "--resamples", "0"]
    program = f"POINTS, FIT = {str(points)!r}, {columns!r}\n{WITHOUT_TORCH}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found, codes = json.loads(done.stdout)
    assert {name: heavy for name, heavy in found.items() if heavy} == {}
    assert {name: code for name, code in codes.items() if code} == {"show nano signal.k=0": 2}


def test_code_that_comes_with_a_model_is_not_run_unless_asked_for() -> None:
    assert HuggingFaceTeacher(model="any").trust_remote_code is False
    for teacher in spec_classes(Recipe.model_fields["teacher"].annotation):
        field = teacher.model_fields.get("trust_remote_code")
        assert field is None or field.default is False


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(place, dotted name, node) of every call in the package."""
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", ast.unparse(node.func), node


def keyword(node: ast.Call, name: str) -> object:
    return next((ast.literal_eval(given.value) for given in node.keywords if given.arg == name), None)


def test_nothing_is_unpickled() -> None:
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path, tree in trees():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} != {"UnpicklingError"}:  # to catch it
                names.append(node.module or "")
            assert not {name.split(".")[0] for name in names} & modules, f"{path}:{getattr(node, 'lineno', 0)}"
    places = [(place, keyword(node, "weights_only")) for place, name, node in calls() if name == "torch.load"]
    assert places, "this test looks for torch.load and must find it"
    assert all(safe is True for _, safe in places), places
    assert not [place for place, name, node in calls() if name == "np.load" and keyword(node, "allow_pickle") is not False]


@pytest.mark.parametrize("name", ["eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"])
def test_no_text_is_run_as_code(name: str) -> None:
    assert [place for place, called, _ in calls() if called == name] == []


def test_no_loader_trusts_remote_code_on_its_own() -> None:
    for place, _, node in calls():
        for given in node.keywords:
            if given.arg == "trust_remote_code":
                assert ast.unparse(given.value) != "True", place


def test_what_lies_beside_the_package_finds_there_what_it_imports() -> None:
    """The lab's scripts and the benchmarks, which no other test runs."""
    root = Path(__file__).parents[1]
    scripts = [*root.glob("lab/*.py"), *root.glob("benchmarks/*.py")]
    assert len(scripts) > 15
    wanted = {
        (path.name, node.module, alias.name)
        for path in scripts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limbeck")
        for alias in node.names
    }
    assert {each for each in wanted if not _has(each[1], each[2])} == set()


def _has(module: str, name: str) -> bool:
    found = importlib.import_module(module)
    return hasattr(found, name) or name in {each.name for each in pkgutil.iter_modules(getattr(found, "__path__", []))}
