"""The figure of a quantisation table: how far each scheme is from the reference, and what it weighs."""

from matplotlib.figure import Figure

from limbeck.drawing import COLOURS, MARKERS, Draw
from limbeck.evals.quantisation import Comparison, Table
from limbeck.report.statistics import Estimate

LEAST_KL_NATS = 1e-7
"""Where the axis ends: below is the rounding of float32 itself."""


def forest(table: Table) -> tuple[Draw, tuple[float, float]]:
    """A forest plot, one line a scheme: mean KL with its interval and the 99th percentile; beside it the weights' bytes."""
    rows = [row for row in table.rows if row.name != "reference"]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        places = range(len(rows))
        for place, row in enumerate(rows):
            _line(left, place, row.kl_nats)
            left.plot(max(row.kl_p99_nats, LEAST_KL_NATS), place, MARKERS[1], color=COLOURS[1], markersize=4)
        left.plot([], [], MARKERS[0], color=COLOURS[0], label="mean, 95% over documents")
        left.plot([], [], MARKERS[1], color=COLOURS[1], markersize=4, label="99th percentile")
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=2)
        left.set(xscale="log", xlabel="KL(reference || scheme), nats per token", title="Distance", yticks=list(places))
        left.set_yticklabels([_label(row) for row in rows])
        left.invert_yaxis()
        right.barh(list(places), [row.weights_bytes / 1e6 for row in rows], color="#bbbbbb", height=0.6)
        right.axvline(table.rows[0].weights_bytes / 1e6, color="black", linewidth=1)
        right.set(xlabel="MB of weights", title="Size")

    return draw, (9.0, 1.6 + 0.32 * len(rows))


def _line(axes: object, place: int, kl: Estimate) -> None:
    value = max(kl.value, LEAST_KL_NATS)
    low, high = (max(value if end is None else end, LEAST_KL_NATS) for end in (kl.low, kl.high))
    axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=2)  # type: ignore[attr-defined]
    axes.plot(value, place, MARKERS[0], color=COLOURS[0])  # type: ignore[attr-defined]


def _label(row: Comparison) -> str:
    return f"{row.name} (simulated)" if row.simulated else row.name
