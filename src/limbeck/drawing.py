"""How every figure of Limbeck looks, and how it becomes a file. Free of torch; import it only where something is drawn.

Black is for what others are compared with; the rest takes the colours of Okabe & Ito (2008), which colour-blind readers tell
apart, each with a marker of its own. Matplotlib's object interface is used, which draws without a display and leaves no global
state behind. The same input gives the same bytes.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import matplotlib as mpl
from matplotlib.figure import Figure

from limbeck.paths import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P", "X")
SEQUENTIAL = "viridis"
"""The colour map of an ordered quantity, such as the size of a student."""
_STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.hashsalt": "limbeck",
}
_DPI = 200
_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}

Draw = Callable[[Figure], None]


def render_both(draw: Draw, *, size: tuple[float, float]) -> tuple[bytes, bytes]:
    """PNG and SVG of a figure of `size` inches that `draw` fills; laid out once."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        raster = _saved(figure, "png")
        figure.set_layout_engine("none")
        return raster, _saved(figure, "svg")


def _saved(figure: Figure, format: Literal["png", "svg"]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=_DPI, metadata=_METADATA[format])
    return buffer.getvalue()


def write_figure(draw: Draw, path: Path, *, size: tuple[float, float]) -> tuple[Path, Path]:
    """Write `path` + `.svg` and `.png`; returns the two paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vector, raster = path.with_name(f"{path.name}.svg"), path.with_name(f"{path.name}.png")
    data, drawn = render_both(draw, size=size)
    write_atomically(vector, [drawn])
    write_atomically(raster, [data])
    return vector, raster
