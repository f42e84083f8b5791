"""The figure of errors: both files, every panel with its unit, points set aside marked."""

from pathlib import Path

import numpy as np
import pytest
from fit_points import chinchilla_points, distilled_points

from limbeck.plan.fit import figure
from limbeck.plan.fit.figure import draw_fit
from limbeck.plan.laws import DISTILLATION, SupervisedLaw

CHINCHILLA = SupervisedLaw(A=477.8, B=2143, E=1.817, alpha=0.3473, beta=0.3672)


@pytest.mark.parametrize("taught", [True, False])
def test_a_figure_is_drawn(tmp_path: Path, taught: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # text stays text, to be read here
    points = distilled_points(80)[0] if taught else chinchilla_points()
    aside = points.loss < 2.4
    law = DISTILLATION if taught else CHINCHILLA
    vector, raster = draw_fit(law, points.where(~aside), held_out=points.where(aside), path=tmp_path / "figures" / "fit")
    assert (vector.name, raster.name) == ("fit.svg", "fit.png")
    assert raster.read_bytes().startswith(b"\x89PNG")
    text = vector.read_text(encoding="utf-8")
    assert f"fitted ({(~aside).sum()})" in text
    assert f"held out ({aside.sum()})" in text
    for label in ("N, non-embedding parameters", "D, training tokens", "observed loss (nats per token)", "(%)"):
        assert label in text
    assert ("teacher's loss (nats per token)" in text) == taught


def test_errors_are_drawn_in_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn = Figure()
    monkeypatch.setattr(figure, "write_figure", lambda draw, path, *, size: draw(drawn))
    points = chinchilla_points()
    draw_fit(CHINCHILLA, points, held_out=None, path=tmp_path / "fit")
    expected = 1.817 + 477.8 / points.params**0.3473 + 2143 / points.tokens**0.3672
    for axes, across in zip(drawn.axes, (points.params, points.tokens), strict=False):
        np.testing.assert_allclose(axes.collections[0].get_offsets(), np.stack([across, 100 * (expected / points.loss - 1)], 1))
    np.testing.assert_allclose(drawn.axes[2].collections[0].get_offsets(), np.stack([points.loss, expected], 1))
