"""`limbeck fit`: from a file or run folders to a law, and one line for what is wrong."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.plan.law_files import read_laws
from limbeck.plan.laws import DISTILLATION, SUPERVISED
from limbeck.runs import Costs, RunWriter
from limbeck.spec.load import load_recipe

Limbeck = Callable[..., Any]
CSV = Path(__file__).parents[1] / "plan" / "data" / "chinchilla_epoch_svg.csv"
ISOFLOPS = CSV.with_name("isoflops_openathena.csv")
COLUMNS = "N=Model Size,D=`Training FLOP`/(6*N),loss=loss"
EXPECTED = 1.8172 + 477.83 / 1e9**0.34731 + 2143.4 / 2e10**0.36717
"""The refit's loss of 1e9 parameters and 2e10 tokens, by coefficients of an independent script."""
PUBLISHED = ("--columns", COLUMNS, "--drop-lowest-tokens-per-parameter", 5)


def test_json_is_the_law_and_how_the_fit_went(limbeck: Limbeck, tmp_path: Path) -> None:
    law, figure = tmp_path / "new" / "law.json", tmp_path / "figure"
    outcome = limbeck(
        "fit", CSV, "--law", "chinchilla", *PUBLISHED, "--resamples", 400, "-o", law, "--figure", figure, "--json"
    )
    assert (outcome.code, outcome.err) == (0, "")
    values = json.loads(outcome.out)
    assert values["law"] == "chinchilla"
    assert list(values["coefficients"]) == list(values["intervals"]) == ["A", "B", "E", "alpha", "beta"]
    assert values["coefficients"]["E"] == pytest.approx(1.817, abs=0.001)
    assert all(low < values["coefficients"][name] < high for name, (low, high) in values["intervals"].items())
    assert values["objective"] <= 1.01828e-3
    assert (values["points"], values["delta"], values["resamples"], values["held_out"]) == (240, 1e-3, 400, None)
    assert 0 < values["mean_relative_error"] < 0.006 < values["max_relative_error"]
    assert values["derived"]["a_star"]["value"] == pytest.approx(0.514, abs=0.001)
    assert values["path"] == str(law)
    assert [Path(path).suffix for path in values["figures"]] == [".svg", ".png"]
    assert all(Path(path).is_file() for path in values["figures"])
    assert float(np.exp(read_laws(law).supervised.log_loss(np.log(1e9), np.log(2e10)))) == pytest.approx(EXPECTED, rel=1e-4)


MASSIVETEXT = "experiment==ml_scalefit__massivetext__chinchilla"


@pytest.mark.parametrize(
    "conditions",
    [
        (f"{MASSIVETEXT} and outlier==False",),
        (f"{MASSIVETEXT} and not outlier",),
        ("experiment=='ml_scalefit__massivetext__chinchilla' and outlier=='False'",),
        (f"({MASSIVETEXT}) & (outlier==false)",),
        (f"{MASSIVETEXT} & (not outlier | loss>100)",),
        ("ml_scalefit__massivetext__chinchilla==experiment and outlier!=True",),
        (MASSIVETEXT, "not outlier"),
        ("not outlier", "N>1", MASSIVETEXT),
        (f"{MASSIVETEXT} or loss<0", "outlier==False or loss<0"),
    ],
)
def test_rows_are_chosen_in_many_spellings(limbeck: Limbeck, conditions: tuple[str, ...]) -> None:
    """Numbers of the fit without outliers that an independent script gives."""
    options = [part for condition in conditions for part in ("--where", condition)]
    outcome = limbeck("fit", ISOFLOPS, "--columns", "N=params,D=tokens,loss=loss", *options, "--resamples", 0, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    values = json.loads(outcome.out)
    assert values["points"] == 89
    assert values["coefficients"]["E"] == pytest.approx(1.8506, abs=0.002)
    assert 100 * values["mean_relative_error"] == pytest.approx(0.48, abs=0.005)


def test_an_experiment_with_its_outliers(limbeck: Limbeck) -> None:
    arguments = ("--columns", "N=params,D=tokens,loss=loss", "--where", MASSIVETEXT, "--resamples", 0, "--json")
    assert json.loads(limbeck("fit", ISOFLOPS, *arguments).out)["points"] == 124


@pytest.mark.parametrize(
    "columns",
    [
        ("N=Model Size,C=Training FLOP,D=C/(6*N),loss=loss",),
        ("D=C/(6*N),loss=loss,C=Training FLOP,N=Model Size",),
        ("N=Model Size,D=Training FLOP/(6*N),loss=loss",),
        ("N=Model Size,D=Training FLOP/(6*Model Size),loss=loss",),
        ("N='Model Size',D='Training FLOP'/(6*N)",),
        ("N=`Model Size`,D=`Training FLOP`/(6*N)",),
        ("N=Model Size", "D=Training FLOP/(6*N)"),
        ("D=C/(6*N),loss=loss", "C=Training FLOP", "N=Model Size"),
    ],
)
def test_columns_in_many_spellings(limbeck: Limbeck, columns: tuple[str, ...]) -> None:
    options = [part for each in columns for part in ("--columns", each)]
    outcome = limbeck("fit", CSV, *options, *PUBLISHED[2:], "--resamples", 0, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    values = json.loads(outcome.out)
    assert values["points"] == 240
    assert values["coefficients"]["E"] == pytest.approx(1.8172, abs=1e-4)
    assert values["range"]["tokens"][0] > 1e8


def test_a_name_of_ones_own_may_be_for_conditions_alone(limbeck: Limbeck) -> None:
    arguments = ("--columns", "ratio=D/N", "--hold-out", "ratio<5", "--resamples", 0, "--json")
    values = json.loads(limbeck("fit", CSV, *PUBLISHED, *arguments).out)
    assert values["points"] + values["held_out"]["points"] == 240
    assert values["held_out"]["points"] > 10
    values = json.loads(limbeck("fit", CSV, *PUBLISHED, *arguments[:2], "--where", "ratio>5", *arguments[4:]).out)
    assert values["held_out"] is None
    assert 100 < values["points"] < 240


@pytest.mark.parametrize("suffix", ["", ".png", ".svg", ".PNG"])
def test_a_figures_suffix_is_not_doubled(limbeck: Limbeck, tmp_path: Path, suffix: str) -> None:
    outcome = limbeck("fit", CSV, *PUBLISHED, "--resamples", 0, "--figure", tmp_path / f"fit.v1{suffix}", "--json")
    expected = [tmp_path / "fit.v1.svg", tmp_path / "fit.v1.png"]
    assert json.loads(outcome.out)["figures"] == list(map(str, expected))
    assert sorted(tmp_path.iterdir()) == sorted(expected)


@pytest.mark.parametrize("option", ["-o", "--figure"])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("/proc/law", "can't be written"),
        ("/dev/null/x", "/dev/null is no folder"),
        ("/dev/null", "is a device or a pipe"),
        ("{tmp}/file/x", "file is no folder"),
        ("{tmp}/file/x/y", "Not a directory"),
        ("{tmp}/" + 300 * "x", "File name too long"),
        ("{tmp}", "is a folder"),
        ("/", "is a folder"),
    ],
)
def test_what_can_not_be_written_is_said_before_the_fit(
    limbeck: Limbeck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, place: str, reason: str
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr("limbeck.plan.fit.fitting.fit_law", lambda *_, **__: pytest.fail("it was fitted"))
    path = place.format(tmp=tmp_path)
    outcome = limbeck("fit", CSV, *PUBLISHED, option, path)
    assert outcome.code == 1
    assert path in outcome.complaint
    assert reason in outcome.complaint
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


def test_a_figures_file_may_be_a_folder_of_the_same_name_less_the_suffix(limbeck: Limbeck, tmp_path: Path) -> None:
    (tmp_path / "fit").mkdir()
    assert limbeck("fit", CSV, *PUBLISHED, "--resamples", 0, "--figure", tmp_path / "fit.png").code == 0
    (tmp_path / "other.svg").mkdir()
    assert "other.svg is a folder" in limbeck("fit", CSV, *PUBLISHED, "--figure", tmp_path / "other").complaint


def test_the_same_seed_gives_the_same_bytes(limbeck: Limbeck) -> None:
    first, again, other = (
        limbeck("fit", CSV, *PUBLISHED, "--resamples", 50, "--seed", seed, "--json").out for seed in (0, 0, 1)
    )
    assert first == again != other


def test_lines_are_for_people(limbeck: Limbeck) -> None:
    outcome = limbeck("fit", CSV, *PUBLISHED, "--resamples", 50, "--hold-out", "loss<2.25")
    assert outcome.code == 0
    assert "error on the points: mean 0." in outcome.out
    assert "points set aside: mean " in outcome.out
    assert "95 % " in outcome.out


def test_a_formula_with_starts(limbeck: Limbeck) -> None:
    formula = "E + A / N**alpha + B / D**beta"
    arguments = ("--law", formula, "--start", "E=1.5,alpha=0.4,beta=0.3", "--resamples", 0, "--json")
    values = json.loads(limbeck("fit", CSV, *PUBLISHED, *arguments).out)
    assert values["law"] == formula
    assert values["objective"] == pytest.approx(1.018274e-3, rel=1e-6)
    assert values["intervals"] == values["derived"] == {}


@pytest.fixture
def distilled_csv(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    params, tokens = np.exp(draw.uniform(np.log([143e6, 4e9]), np.log([7.75e9, 512e9]), (120, 2))).T
    teacher = draw.uniform(1.9, 2.9, 120)
    loss = DISTILLATION.loss(params, tokens, teacher) * np.exp(0.003 * draw.standard_normal(120))
    rows = "".join(
        f"{row[0]!r},{row[1]!r},{row[2]!r},{row[3]!r}\n" for row in np.stack([params, tokens, teacher, loss], 1).tolist()
    )
    path = tmp_path / "distilled.csv"
    path.write_text("N,D,teacher_loss,loss\n" + rows, encoding="utf-8")
    return path


def test_teachers_losses_make_a_distillation_law(limbeck: Limbeck, distilled_csv: Path, tmp_path: Path) -> None:
    law = tmp_path / "law.json"
    arguments = ("--resamples", 10, "--hold-out", "loss<=2.3", "-o", law, "--json")
    outcome = limbeck("fit", distilled_csv, *arguments)
    values = json.loads(outcome.out)
    assert values["law"] == "distillation"
    assert values["delta"] == 1e-4
    assert values["held_out"]["points"] + values["points"] == 120
    assert values["held_out"]["mean_relative_error"] < 0.01
    assert values["supervised"]["coefficients"]["gamma"] == 0.452
    assert outcome.err.startswith("warning: what students reach alone is taken from arXiv 2502.08606")
    assert [f"warning: {warning}" for warning in values["warnings"]] == outcome.err.splitlines()
    assert read_laws(law).distillation is not None
    # The same again, with the frozen law from a file: no warning about it, and another law inside.
    frozen = tmp_path / "frozen.json"
    frozen.write_text(
        json.dumps({"law": "chinchilla", "coefficients": {"A": 480, "B": 2100, "E": 1.8, "alpha": 0.35, "beta": 0.37}})
    )
    outcome = limbeck("fit", distilled_csv, *arguments, "--supervised", frozen)
    assert "taken from arXiv" not in outcome.err
    assert json.loads(outcome.out)["supervised"]["law"] == "chinchilla"


def write_run(folder: Path, *, params: float, tokens: float, loss_nats: float, teacher_nats: float | None = None) -> None:
    kind = "ce" if teacher_nats is None else "forward_kl"
    recipe = load_recipe("quickstart", {"objective.kind": kind, "name": folder.name})
    bits = 1 / math.log(2) / 4  # nats per token to bits per byte, at four bytes a token
    teacher = None if teacher_nats is None else {"name": "t", "bits_per_byte": teacher_nats * bits, "flops_per_token": None}
    RunWriter(folder, recipe=recipe, device="cpu").finish(
        Costs(step=1, tokens=int(tokens), seconds=1.0),
        bits_per_byte=loss_nats * bits,
        heldout_tokens=1000,
        heldout_bytes=4000,
        parameters={"non_embedding": params},
        teacher=teacher,
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Twelve runs alone and twenty distilled ones, without noise, and one that was never finished."""
    draw = np.random.default_rng(0)
    for place in range(32):
        params, tokens = np.exp(draw.uniform(np.log([143e6, 4e9]), np.log([7.75e9, 512e9])))
        teacher = draw.uniform(1.9, 2.9) if place >= 12 else None
        law = SUPERVISED.loss(params, tokens) if teacher is None else DISTILLATION.loss(params, tokens, teacher)
        write_run(tmp_path / "runs" / f"r{place}", params=params, tokens=tokens, loss_nats=float(law), teacher_nats=teacher)
    RunWriter(tmp_path / "runs" / "half", recipe=load_recipe("quickstart", {"name": "half"}), device="cpu")
    return tmp_path / "runs"


def test_runs_become_both_laws(limbeck: Limbeck, runs: Path) -> None:
    outcome = limbeck("fit", runs, "--law", "supervised", "--resamples", 0, "--json")
    values = json.loads(outcome.out)
    assert values["points"] == 12
    assert values["coefficients"]["E"] == pytest.approx(1.22, rel=1e-3)
    assert "half is left out: it is unfinished" in outcome.err
    assert "20 distilled runs are left out" in outcome.err
    outcome = limbeck("fit", *sorted(runs.glob("r*")), "--resamples", 0, "--json")
    values = json.loads(outcome.out)
    assert (values["law"], values["points"]) == ("distillation", 20)
    assert values["mean_relative_error"] < 1e-3
    assert values["supervised"]["coefficients"]["E"] == pytest.approx(1.22, rel=1e-3)
    assert values["range"]["teacher_loss"][0] >= 1.9


def test_runs_are_chosen_by_several_conditions(limbeck: Limbeck, runs: Path) -> None:
    arguments = ("--law", "E + A / N**0.4", "--where", "N>3e8", "--where", "D<3e11", "--resamples", 0, "--json")
    values = json.loads(limbeck("fit", runs, *arguments).out)
    assert values["range"]["params"][0] > 3e8
    assert values["range"]["tokens"][1] < 3e11
    assert "leaves no run" in limbeck("fit", runs, *arguments, "--where", "N>1e12").complaint


def test_too_few_runs_alone(limbeck: Limbeck, runs: Path) -> None:
    assert "no run trains without a teacher" in limbeck("fit", *(runs / f"r{place}" for place in range(12, 32))).err
    assert "3 runs without a teacher can't determine" in limbeck("fit", *(runs / f"r{place}" for place in range(9, 32))).err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((CSV, "--law", "chinchila"), 2, "did you mean 'chinchilla'"),
        ((CSV, *PUBLISHED, "--law", "E + A / (N"), 2, "not a formula"),
        ((CSV, "--columns", "N=Model Sise"), 2, "did you mean 'Model Size'"),
        ((CSV,), 2, "has no column 'N'"),
        ((CSV, *PUBLISHED, "--where", "loss<1"), 1, "leaves none of the 245 rows"),
        ((CSV, *PUBLISHED, "--where", "loss>4"), 1, "no point is left"),
        ((CSV, "--columns", COLUMNS, "--where", "loss>3.6"), 1, "4 points can't determine the 5 coefficients"),
        ((CSV, *PUBLISHED, "--law", "distillation"), 2, "--columns teacher_loss=COL"),
        ((CSV, *PUBLISHED, "--start", "A=1"), 2, "--start is for a formula"),
        ((CSV, *PUBLISHED, "--law", "E + A / N", "--start", "A"), 2, "is not name=number"),
        ((CSV, *PUBLISHED, "--law", "E + A / N", "--start", "A=inf"), 2, "is not finite"),
        ((CSV, *PUBLISHED, "--delta", "0"), 2, "--delta=0 must be above zero"),
        ((CSV, *PUBLISHED, "--supervised", CSV), 2, "is no law"),
        ((CSV, *PUBLISHED, "-o", CSV.parent), 1, "is a folder"),
        ((CSV, *PUBLISHED, "-o", CSV / "law.json"), 1, "name another path"),
        ((CSV, *PUBLISHED, "--law", "E + A / N^alpha"), 2, "write ** for powers"),
        ((CSV, *PUBLISHED, "--law", "E + A / N > 2"), 2, "is true or false, and not a loss"),
        ((CSV, "--columns", "N=Model Size,D=(Training FLOP/6)^2"), 2, "write ** for powers"),
        ((CSV, "--columns", "N=Model Size,D=Training FLOP,los=loss"), 2, "did you mean 'loss'"),
        ((CSV, "--columns", "N=Model Size,D=Training FLOP/(6*N),"), 2, "a comma too many"),
        ((CSV, "--columns", "N=Model Size", "--columns", "N=x"), 2, "names N twice"),
        ((CSV, "--columns", "N=a,a=b,b=N"), 2, "goes round in a circle"),
        ((CSV, "--columns", "N=loss>2,D=Training FLOP"), 2, "is true or false"),
        ((CSV, "--columns", "N='Modl Size'"), 2, "did you mean 'Model Size'"),
        ((CSV, "--columns", "N='hex_color'*2,D=x"), 1, "hex_color is '#faebdd', which is not a number"),
        ((CSV, *PUBLISHED, "--where", "los==hex"), 2, "did you mean 'loss'"),
        ((CSV, *PUBLISHED, "--where", "hex_colr==x"), 2, "did you mean 'hex_color'"),
        ((CSV, *PUBLISHED, "--where", "hex_color<abc"), 2, "needs 'abc'"),
        ((CSV, *PUBLISHED, "--law", "E + A*log(5e9-N)", "--hold-out", "N>4e9", "--resamples", 0), 1, "no finite loss at N="),
        ((CSV, CSV), 2, "one CSV file, or run folders"),
        ((CSV.parent,), 1, "is no run and holds none"),
        ((CSV.parent, "--columns", COLUMNS), 2, "--columns is for a CSV file"),
        (("none.csv",), 1, "none.csv does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(limbeck: Limbeck, arguments: tuple[object, ...], code: int, message: str) -> None:
    outcome = limbeck("fit", *arguments)
    assert message in outcome.complaint
    assert outcome.code == code


def test_teachers_losses_that_are_empty_are_none(limbeck: Limbeck, tmp_path: Path, distilled_csv: Path) -> None:
    lines = distilled_csv.read_text(encoding="utf-8").splitlines()
    alone = [",".join((*line.split(",")[:2], "", line.split(",")[3])) for line in lines[1:]]
    path = tmp_path / "alone.csv"
    path.write_text("\n".join([lines[0], *alone]), encoding="utf-8")
    assert json.loads(limbeck("fit", path, "--resamples", 0, "--json").out)["law"] == "chinchilla"
    path.write_text("\n".join([lines[0] + ",kind", *(f"{line},a" for line in alone), *(f"{line},d" for line in lines[1:])]))
    for kind, law in (("a", "chinchilla"), ("d", "distillation")):
        outcome = limbeck("fit", path, "--where", f"kind=={kind}", "--resamples", 0, "--json")
        assert json.loads(outcome.out)["law"] == law


def test_units_are_doubted_on_stderr(limbeck: Limbeck) -> None:
    outcome = limbeck(
        "fit", CSV, "--columns", "N=`Model Size`/1e9,D=`Training FLOP`/(6e9*N),loss=loss", "--resamples", 0, "--json"
    )
    assert outcome.code == 0
    assert "multiply in --columns N=COL*1e9" in outcome.err
    assert json.loads(outcome.out)["warnings"]


def test_fitting_needs_neither_torch_nor_a_drawing_library_and_starting_no_solver() -> None:
    code = (
        "import sys, pathlib\n"
        "from limbeck.cli.fit import fit\n"
        "early = {'numpy', 'scipy'} & set(sys.modules)\n"
        "fit([pathlib.Path(sys.argv[1])], columns=[sys.argv[2]], resamples=10, as_json=True)\n"
        "sys.exit(' '.join(early | {'torch', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(CSV), COLUMNS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["points"] == 245
