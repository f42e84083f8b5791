"""The page in a real browser: no errors, no requests, and nothing wider than a phone. Skipped where there is no Chromium."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
from handmade import cell, result, shifted, study

from limbeck.report.study_page import write_study_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium"),
    pytest.mark.usefixtures("no_figures"),
    pytest.mark.slow,
]
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body>
<iframe id="page" src="report.html" style="border:0;height:900px"></iframe>
<script>
page.width = WIDTH;
page.onload = () => {
  const root = page.contentDocument.documentElement;
  const wide = [...root.querySelectorAll("main > *")].filter(each => each.getBoundingClientRect().right > WIDTH + 1);
  document.body.setAttribute("data-found", JSON.stringify(
    {scroll: root.scrollWidth, inside: root.clientWidth, wide: wide.map(each => each.className || each.tagName),
     text: root.innerText.length, resources: page.contentWindow.performance.getEntriesByType("resource").length}));
};
</script>"""


@pytest.fixture
def page(make_run, tmp_path):
    """A study with names too long for a phone."""
    long = "an-arm-with-a-name-that-is-longer-than-a-phone-is-wide-and-has-no-space-in-it"
    table = {"by length": {"headers": [f"column {number}" for number in range(12)], "rows": [[0.123456] * 12]}}
    loop = {"start_character": 0, "stop_character": 300, "period": 1, "start": 0, "repeats": 300, "text": "a"}
    sample = {"prompt": "p" * 300, "text": "a" * 300, "outcome": "truncated_loop", "loop": loop}
    evals = {
        "latency": result("latency", {f"metric_{number}": 1.0 for number in range(9)}, details={"tables": table}),
        "generation": result("generation", {"loop_share": 1.0}, details={"samples": [sample]}),
    }
    ce, kl = make_run(overrides={"data.tokenizer": "x" * 200}), make_run(objective="forward_kl", documents=shifted(-0.1))
    cells = [cell("ce", ce, evals=evals), cell(long, kl, controls={"tokens": "ce"}, evals=evals)]
    store = {"kind": "sampled", "path": "/" + "store" * 40, "identity": {"teacher": {"revision": "f" * 64}}}
    view = study(*cells, name="title" * 30, question="question" * 30, command="run" * 90, stores=[store])
    return write_study_report(view, folder=tmp_path / "out")


def browse(folder, *arguments):
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        f"--user-data-dir={folder}/profile",
    )
    return subprocess.run([BROWSER, *flags, *arguments], capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    holder = page.parent / "measure.html"
    holder.write_text(MEASURE.replace("WIDTH", str(width)), encoding="utf-8")
    done = browse(page.parent, "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom", f"file://{holder}")
    found = json.loads(unescape(re.search(r'data-found="([^"]*)"', done.stdout)[1]))
    assert found["text"] > 2000
    assert found["wide"] == []
    assert found["scroll"] <= found["inside"] <= width
    assert found["resources"] == 0


def test_the_console_is_silent(page):
    done = browse(page.parent, "--dump-dom", f"file://{page}")
    assert "<h1>" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


def test_it_prints(page):
    printed = page.parent / "page.pdf"
    browse(page.parent, f"--print-to-pdf={printed}", f"file://{page}")
    assert printed.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page[^s]", printed.read_bytes())) >= 2
