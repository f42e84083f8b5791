"""The figure of differences: whatever arms are called, its words are inside it."""

import pytest
from handmade import study
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from limbeck.report import forest
from limbeck.report.arms import arms_of
from limbeck.report.comparisons import comparisons


@pytest.mark.parametrize("controls", [1, 2], ids=["one control", "a control each"])
def test_no_word_is_cut_off(controls: int, seeds, monkeypatch: pytest.MonkeyPatch):
    """Of two arms with as long names as labels have, against controls whose names are as long."""
    name = "-of-gemma3-reader-transplanted-twice"
    cells = [each for number in range(controls) for each in seeds(f"control-{number}{name}", [2.4, 2.5])]
    for number in range(2):
        against = f"control-{number % controls}{name}"
        cells += seeds(f"arm-{number}{name}", [2.3, 2.2], controls=against, objective="forward_kl")
    kept = []
    monkeypatch.setattr(forest, "drawn", lambda stem, caption, draw, *, size, wide: kept.append((draw, size)))
    arms = arms_of(study(*cells))
    forest.draw_differences(arms, comparisons(arms))
    ((draw, size),) = kept
    figure = Figure(figsize=size, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    draw(figure)
    canvas.draw()
    words = [each for each in figure.findobj(Text) if any(map(str.isalpha, each.get_text()))]
    assert any("At equal training seconds" in each.get_text() for each in words)
    for each in words:
        box = each.get_window_extent()
        assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1, each.get_text()
        assert box.y0 >= -1 and box.y1 <= figure.bbox.height + 1, each.get_text()
