"""The page is one well-formed file that asks for nothing, shows no markup of others, and has pictures in it."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from handmade import shifted
from matplotlib.image import imread

from limbeck.errors import LimbeckError
from limbeck.report.arms import Arm
from limbeck.report.figures import draw_all
from limbeck.report.page import write_report
from limbeck.runs import Costs

EVIL = '<script>alert("x")</script>&'
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


def parsed(path):
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture
def page(make_arm, tmp_path):
    def curve(offset):
        return [(Costs(step, 100 * step, 1.0 * step, 1e11 * step, 0.0), 4 - step / 10 + offset) for step in (0, 3, 6, 10)]

    arms = [
        make_arm("ce", evals=curve(0), overrides={"data.tokenizer": EVIL}),
        make_arm(f"_$^${EVIL}", objective="forward_kl", evals=curve(-0.1), documents=shifted(-0.2, wobble=0.1)),
        make_arm("half", objective="forward_kl", evals=curve(0.1)[:2], finished=False),
        Arm("missing", None),
    ]
    store = {"kind": EVIL, "path": EVIL, "identity": {EVIL: {EVIL: EVIL}}}
    return write_report(
        arms, control="ce", stores=[store], title=EVIL, folder=tmp_path / "out", teacher={"name": EVIL, "bits_per_byte": 3.1}
    )


def test_is_well_formed_and_needs_nothing_else(page):
    checker = parsed(page)
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(checker.tags)
    assert all(value.startswith("data:image/png;base64,") for name, value in checker.attributes if name == "src")
    assert {"href", "srcset", "data", "action", "onerror", "onload"}.isdisjoint(name for name, _ in checker.attributes)
    assert re.search(r"https?://|@import|url\(", page.read_text(encoding="utf-8")) is None


def test_shows_what_others_wrote_as_text(page):
    text = "".join(parsed(page).text)
    # Title twice, arm, its recipe's summary, verdict, tokenizer in the recipe, store kind, path, identity, teacher.
    assert text.count(EVIL) >= 10


def test_pictures_are_beside_the_page_inside_it_and_not_blank(page):
    files = {path.name: path.read_bytes() for path in (page.parent / "figures").iterdir()}
    assert set(files) == {
        "differences.png",
        "bits-by-tokens.png",
        "bits-by-seconds.png",
        "bits-by-student-flops.png",
        "bits-by-all-flops.png",
        "kl-by-tokens.png",
        "training-loss.png",
    }
    sources = [value for name, value in parsed(page).attributes if name == "src"]
    assert sorted(base64.b64decode(source.partition(",")[2]) for source in sources) == sorted(files.values())
    for data in files.values():
        pixels = imread(io.BytesIO(data))
        coloured = (pixels[..., :3].max(axis=-1) - pixels[..., :3].min(axis=-1)) > 0.3
        assert coloured.mean() > 5e-4  # an arm is drawn in colour, and axes alone are grey
        assert pixels.shape[1] >= 900


def pictures(arms):
    return {figure.name: figure.png for figure in draw_all(arms, control=arms[0], teacher=None)}


def with_middle(make_arm, bits):
    evals = [(Costs(3, 300, 3.0, 3e11), bits), (Costs(10, 1000, 10.0, 1e12), 2.3)]
    return [make_arm("ce", evals=evals), make_arm("kl", objective="forward_kl")]


def test_a_curve_shows_its_middle(make_arm):
    one, other = pictures(with_middle(make_arm, 3.0)), pictures(with_middle(make_arm, 2.8))
    assert {name for name in one if one[name] != other[name]} == set(one) - {"differences"}


def test_an_untrained_student_does_not_squash_the_curves(make_arm):
    arms = with_middle(make_arm, 3.0)
    start = make_arm("ce", evals=[(Costs(), 12.0), (Costs(3, 300, 3.0, 3e11), 3.0), (Costs(10, 1000, 10.0, 1e12), 2.3)])
    one, other = pictures(arms), pictures([start, arms[1]])
    assert one["bits-by-tokens"] == other["bits-by-tokens"]


def test_says_what_is_unfinished(page):
    text = "".join(parsed(page).text)
    assert "“half” (unfinished), “missing” (unfinished)" in text


def test_leaves_no_temporary_file_and_can_be_written_again(make_arm, tmp_path):
    arms = [make_arm("ce", evals=[(Costs(5, 500, 5.0, 5e11), 3.0)]), make_arm("kl", objective="forward_kl")]
    first = write_report(arms, control="ce", stores=[], title="t", folder=tmp_path / "out").read_bytes()
    again = write_report(arms, control="ce", stores=[], title="t", folder=tmp_path / "out").read_bytes()
    assert first == again
    assert [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".tmp"] == []


def test_nothing_trained_yet_still_gives_a_page(tmp_path):
    page = write_report([Arm("ce", None), Arm("kl", None)], control="ce", stores=[], title="t", folder=tmp_path)
    assert "Nothing to compare yet" in "".join(parsed(page).text)


def test_without_a_control_nothing_is_written(make_arm, tmp_path):
    with pytest.raises(LimbeckError, match="control=ce"):
        write_report([make_arm("kl", objective="forward_kl")], control="ce", stores=[], title="t", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()
