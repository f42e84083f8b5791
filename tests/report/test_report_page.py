"""The page is one well-formed file that asks for nothing and shows no markup of others; everything lies beside it as files."""

import base64
import csv
import dataclasses
import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from handmade import cell, result, shifted, study
from matplotlib.figure import Figure
from matplotlib.image import imread

from limbeck.errors import LimbeckError
from limbeck.report.arms import arms_of
from limbeck.report.blocks import Paragraph, Sample, Source, Table
from limbeck.report.calibration import reliability
from limbeck.report.cells import Prediction
from limbeck.report.figures import chosen, draw_curves, looks
from limbeck.report.files import write_files
from limbeck.report.formats import significant, visible
from limbeck.report.from_runs import arm_names, view_of_runs
from limbeck.report.html import render_html
from limbeck.report.markdown import render_markdown
from limbeck.report.samples import samples
from limbeck.report.study_page import study_blocks, write_study_report
from limbeck.runs import Costs

EVIL = '<script>alert("x")</script>&\'</style>\u202eابجد|`*'
SEEN = EVIL.replace("\u202e", "U+202E")
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Checker(HTMLParser):
    """Collects elements and attributes, and fails on a tag that closes another than the last one opened."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def curve(offset):
    return [(Costs(step, 100 * step, 1.0 * step, 1e11 * step, 0.0), 4 - step / 10 + offset) for step in (0, 3, 6, 10)]


def hostile(make):
    """A study in which every text that others write is `EVIL`, with a result of every kind."""
    diagram = {"error": 0.1, "count": [3, 0, 5], "confidence": [0.1, None, 0.9], "outcome": [0.2, None, 0.8]}
    details = {"reliability": {"data": diagram, EVIL: diagram}, "tables": {EVIL: {"headers": [EVIL], "rows": [[EVIL]]}}}
    loop = {"period": 1, "start": 3, "repeats": 4.0, "text": EVIL, "start_character": 4, "stop_character": 40}
    written = {"samples": [{"prompt": EVIL, "text": EVIL, "outcome": EVIL, "loop": loop}]}
    evals = {
        "calibration": result("calibration", {EVIL: 0.1}, details=details),
        "generation": result("generation", {"loop_share": 0.5}, details=written),
    }
    said = Prediction(1000, 1e12, 1e12, 9.0, 80.0)
    cells = []
    for seed in (1, 2):
        ce = make(evals=curve(0), documents=shifted(0.01 * seed), overrides={"data.tokenizer": EVIL})
        kl = make(objective="forward_kl", evals=curve(-0.1), documents=shifted(0.02 * seed - 0.2, wobble=0.1))
        name = f"_$^${EVIL}"
        cells.append(cell("ce", ce, seed=seed, evals=evals, predicted=said))
        held = {"controls": {"tokens": f"ce-{seed}"}, "settings": {EVIL: seed}, "evals": evals}
        cells.append(cell(name, kl, seed=seed, **held))
        cells.append(cell(f"{name}2", kl, seed=seed, **{**held, "settings": {EVIL: EVIL}}))
    half = make(objective="forward_kl", evals=curve(0.1)[:2], finished=False)
    cells += [cell("half", half), cell("lost", None, status="left out", note=EVIL)]
    store = {"kind": EVIL, "path": EVIL, "identity": {EVIL: {EVIL: EVIL}}}
    fidelity = {EVIL: {"sources": [{"name": EVIL, "nats": 0.1, "nature": EVIL, "how": EVIL}], "total_nats": 0.1}}
    texts = {"name": EVIL, "question": EVIL, "source": EVIL, "command": EVIL}
    return study(*cells, stores=[store], fidelity=fidelity, teachers={EVIL: {"calibration": evals["calibration"]}}, **texts)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from handmade import make_run

    folder = tmp_path_factory.mktemp("hostile")
    runs = iter(range(100))
    view = hostile(lambda **keywords: make_run(folder / f"run-{next(runs)}", **keywords))
    return write_study_report(view, folder=folder / "out")


def test_is_well_formed_and_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    checker = parsed(text)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(checker.tags)
    assert checker.tags.count("style") == 1
    assert all(value.startswith("data:image/png;base64,") for name, value in checker.attributes if name == "src")
    assert {"href", "srcset", "data", "action", "onerror", "onload"}.isdisjoint(name for name, _ in checker.attributes)
    assert re.search(r"https?://|@import|url\(", text) is None
    assert "default-src 'none'" in text


def test_shows_what_others_wrote_as_text_in_the_order_of_a_reader(page):
    text = "".join(parsed(page.read_text(encoding="utf-8")).text)
    # Title twice, question, arm's names, metrics, details, samples, store, fidelity, teacher, command, study, recipe.
    assert text.count(SEEN) >= 30
    assert "\u202e" not in text
    sections = ["Question: ", "Distillation is ahead", "Arms", "Evaluations", "Curves", "Axes", "Costs", "Predicted → measured"]
    sections += [
        "Signal stores",
        "Calibration",
        "Samples",
        "Evaluations in detail",
        "What this may and may not",
        "To do it again",
    ]
    places = [text.index(section) for section in sections]
    assert places == sorted(places)
    assert "lost" in text
    assert "left out" in text


def test_pictures_are_beside_the_page_inside_it_and_not_blank(page):
    rasters = {path.stem: path.read_bytes() for path in (page.parent / "figures").glob("*.png")}
    vectors = {path.stem: path for path in (page.parent / "figures").glob("*.svg")}
    assert set(rasters) == set(vectors)
    curves = {"bits-by-tokens", "bits-by-seconds", "bits-by-student-flops", "bits-by-all-flops", "kl-by-tokens"}
    assert curves | {"differences", "training-loss", "reliability-calibration"} < set(rasters)
    attributes = parsed(page.read_text(encoding="utf-8")).attributes
    sources = [value for name, value in attributes if name == "src"]
    assert sorted(base64.b64decode(source.partition(",")[2]) for source in sources) == sorted(rasters.values())
    for data in rasters.values():
        pixels = imread(io.BytesIO(data))
        coloured = (pixels[..., :3].max(axis=-1) - pixels[..., :3].min(axis=-1)) > 0.3
        assert coloured.mean() > 5e-4  # an arm is drawn in colour, and axes alone are grey
        assert pixels.shape[1] >= 900
    for path in vectors.values():
        root = ElementTree.parse(path).getroot()
        assert not [each for each in root.iter() if each.tag.endswith("script")]


def test_every_table_is_a_file_and_csv_and_parquet_agree(page):
    parquet = pytest.importorskip("pyarrow.parquet")
    tables = page.parent / "tables"
    names = {path.stem for path in tables.glob("*.csv")}
    assert {"arms", "cells", "comparisons", "costs", "curves", "equal-cost", "eval-calibration", "predicted", "stores"} < names
    assert names == {path.stem for path in tables.glob("*.parquet")}
    for name in names:
        rows = list(csv.DictReader(io.StringIO((tables / f"{name}.csv").read_text(encoding="utf-8"))))
        stored = parquet.read_table(tables / f"{name}.parquet").to_pylist()
        assert len(rows) == len(stored) > 0
        assert [list(row) for row in rows] == [list(row) for row in stored]
        for row, other in zip(rows, stored, strict=True):
            for key, value in other.items():
                same = row[key] == ("" if value is None else str(value))
                assert same or float(row[key]) == value


def test_markdown_says_the_same_and_keeps_markup_of_others_asleep(page):
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert "<script" not in re.sub(r"```.*?```", "", text, flags=re.S)
    assert "\u202e" not in text
    figures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert figures and all((page.parent / figure).is_file() for figure in figures)
    for line in (line for line in text.splitlines() if line.startswith("| ")):
        assert line.endswith(" |")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(tables) > 10
    for table in tables:
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(widths) == 1


def test_a_loop_is_marked_where_it_is():
    sample = Sample("t", "<p>", "once <b>and and and</b>", (8, 19), note="n")
    assert "once &lt;b&gt;<mark>and and and</mark>&lt;/b&gt;" in render_html([sample], title="t")
    assert "once <b>⟦and and and⟧</b>" in render_markdown([sample], title="t")


def test_samples_with_loops_come_first_and_half_told_loops_are_not_marked(make_run):
    plain = {"prompt": "a", "text": "b", "outcome": "stopped", "loop": None}
    looped = {"prompt": "a", "text": "0123456789", "outcome": "truncated_loop", "loop": {"start_character": 2, "repeats": 4.5}}
    untold = {"prompt": "a", "text": "b", "loop": {"period": 1, "text": "b"}}
    evals = {"generation": result("generation", {}, details={"samples": [plain, looped, untold, "no", plain]})}
    found = samples("generation", arms_of(study(cell("ce", make_run(), evals=evals))), {})
    assert [(sample.title, sample.loop) for sample in found] == [
        ("ce (ce): truncated_loop", (2, 10)),
        ("ce (ce)", None),
        ("ce (ce): stopped", None),
    ]


def test_word_problems_are_shown_with_what_was_answered_and_what_is_right(make_run):
    wrong = {"question": "1 + 1?", "text": " 3 or 4", "gold": "2", "answer_strict": None, "answer_flexible": "4"}
    solved = {**wrong, "text": " The answer is 2.", "answer_strict": "2", "outcome": "stopped_correct", "loop": None}
    silent = {**wrong, "answer_flexible": None, "outcome": "truncated_loop", "loop": {"start_character": 0}}
    evals = {"sums": result("gsm", {}, details={"problems": [wrong, solved, silent]})}
    found = study(cell("ce", make_run(), evals=evals))
    assert [(sample.title, sample.prompt) for sample in samples("sums", arms_of(found), {})] == [
        ("ce (ce): truncated_loop, no number, right is 2", "1 + 1?\n"),
        ("ce (ce), last number 4, right is 2", "1 + 1?\n"),
        ("ce (ce): stopped_correct, answers 2, right is 2", "1 + 1?\n"),
    ]
    assert "The answer is 2." in render_html(study_blocks(found), title="t")


def test_reliability_reads_bins_that_hold_positions():
    diagram = {"count": [4, 0], "confidence": [0.2, None], "outcome": [0.25, None]}
    (only,) = reliability({"reliability": {"data": diagram, "empty": {**diagram, "count": [0, 0]}}})["data"]
    assert (only.confidence, only.outcome, only.count) == (0.2, 0.25, 4)
    assert reliability({"reliability": {"empty": {**diagram, "count": [0, 0]}}}) == reliability({}) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12345.678, "12,346"), (0.0123456, "0.01235"), (-2.5, "−2.500"), (1e-7, "1.00 × 10⁻⁷"), (None, "–")],
)
def test_significant_digits(value, text):
    assert significant(value).replace("\xa0", " ") == text


def test_control_characters_are_named():
    assert visible("a\x00\u2066b\tc\n") == "aU+0000U+2066b\tc\n"


@pytest.mark.usefixtures("no_figures")
def test_the_same_study_gives_the_same_bytes_and_no_temporary_file(seeds, tmp_path):
    view = study(*seeds("ce", [2.3, 2.4]), *seeds("kl", [2.2, 2.3], controls="ce", objective="forward_kl"))
    first = write_study_report(view, folder=tmp_path / "out").read_bytes()
    assert write_study_report(view, folder=tmp_path / "out").read_bytes() == first
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"] == []


@pytest.mark.usefixtures("no_figures")
def test_nothing_trained_yet_still_gives_a_page(tmp_path):
    page = write_study_report(study(cell("ce", None), cell("kl", None)), folder=tmp_path / "a")
    assert "Nothing has finished yet" in page.read_text(encoding="utf-8")
    assert "No runs." in write_study_report(study(), folder=tmp_path / "b").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_figures")
def test_tables_of_one_name_do_not_overwrite_one_another(tmp_path):
    blocks = [Table(("x",), ((str(number),),), name=name) for number, name in enumerate(("same", "Same", "same"))]
    write_files([*blocks, Paragraph("p"), Source("s", "```")], title="t", folder=tmp_path)
    assert sorted(path.stem for path in (tmp_path / "tables").glob("*.csv")) == ["Same-2", "same", "same-3"]


def test_without_a_control_nothing_is_written(make_run, tmp_path):
    runs = {"kl": make_run(objective="forward_kl")}
    with pytest.raises(LimbeckError, match="control=ce is not one of the runs"):
        write_study_report(view_of_runs(runs, control="ce"), folder=tmp_path / "out")
    with pytest.raises(LimbeckError, match="learns from a teacher itself"):
        view_of_runs(runs, control="kl")
    assert not (tmp_path / "out").exists()


def test_runs_of_one_recipe_and_other_seeds_are_one_arm(template):
    def seeded(seed, **keywords):
        run = template(**keywords)
        return dataclasses.replace(run, recipe=run.recipe.model_copy(update={"seed": seed}))

    taught = {"objective": "forward_kl"}
    runs = {"ce-s1": seeded(1), "ce-s2": seeded(2), "kl-s1": seeded(1, **taught), "kl-s2": seeded(2, **taught)}
    runs |= {"again": seeded(1, **taught), "kl-s3": seeded(3, **taught), "none": None}
    assert arm_names(runs) == {
        "ce-s1": "ce",
        "ce-s2": "ce",
        "kl-s1": "kl",
        "kl-s2": "kl",
        "kl-s3": "kl",
        "again": "again",
        "none": "none",
    }
    held = {each.name: dict(each.controls).get("tokens") for each in view_of_runs(runs, control="ce-s1").cells}
    assert held == {
        "ce-s1": None,
        "ce-s2": None,
        "kl-s1": "ce-s1",
        "kl-s2": "ce-s2",
        "kl-s3": "ce-s1",
        "again": "ce-s1",
        "none": "ce-s1",
    }


def lines_of(monkeypatch, *cells):
    """What every figure of curves draws: the points of its lines."""

    def render(draw, *, size):
        figure = Figure()
        draw(figure)
        drawn = [line.get_xydata().tolist() for axes in figure.axes for line in axes.get_lines()]
        return repr(drawn).encode(), b""

    monkeypatch.setattr("limbeck.drawing.render_both", render)
    return {figure.name: figure.png.decode() for figure in draw_curves(arms_of(study(*cells)), teacher=None)}


def with_middle(template, bits, *, start=()):
    evals = (*start, (Costs(3, 300, 3.0, 3e11), bits), (Costs(10, 1000, 10.0, 1e12), 2.3))
    return cell("ce", template(evals=evals))


def test_a_curve_shows_its_middle_and_an_untrained_student_does_not_squash_it(template, monkeypatch):
    one = lines_of(monkeypatch, with_middle(template, 3.0))
    assert one["bits-by-tokens"] == "[[[300.0, 3.0], [1000.0, 2.3]]]"
    assert one["bits-by-all-flops"] == "[[[300000000000.0, 3.0], [1000000000000.0, 2.3]]]"
    assert (
        lines_of(monkeypatch, with_middle(template, 3.0, start=((Costs(), 12.0),)))["bits-by-tokens"] == one["bits-by-tokens"]
    )


def test_seeds_are_drawn_as_their_mean(template, monkeypatch):
    cells = [dataclasses.replace(with_middle(template, bits), name=f"ce-{bits}") for bits in (3.0, 3.5)]
    assert lines_of(monkeypatch, *cells)["bits-by-tokens"] == "[[[300.0, 3.25], [1000.0, 2.3]]]"


def test_of_many_arms_the_best_are_drawn_and_what_they_are_held_against(seeds, monkeypatch):
    cells = seeds("ce", [2.9])
    for number in range(20):
        cells += seeds(f"arm{number}", [2.0 + number / 100], controls="ce")
    arms = arms_of(study(*cells))
    names = [arm.name for arm in chosen(arms)]
    assert names == ["ce", *(f"arm{number}" for number in range(11))]
    drawn_as = {(look.colour, look.marker, look.line) for look in looks(arms).values()}
    assert len(drawn_as) == 21


def test_a_spreadsheet_runs_no_cell_as_a_formula(tmp_path):
    texts = ["=1+1", "+cmd", "@SUM(A1)", "-cmd", "-0.5", "+0.5", "- a", "kl"]
    records = tuple({"text": text, "number": -1.5, "=head": None} for text in texts)
    write_files([Table(("text",), (("x",),), records=records)], title="t", folder=tmp_path)
    header, *rows = csv.reader(io.StringIO((tmp_path / "tables" / "table.csv").read_text(encoding="utf-8")))
    assert header == ["text", "number", "'=head"]
    assert [row[0] for row in rows] == ["'=1+1", "'+cmd", "'@SUM(A1)", "'-cmd", "-0.5", "+0.5", "- a", "kl"]
    assert {row[1] for row in rows} == {"-1.5"}
