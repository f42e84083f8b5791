"""How a document longer than a model's window is read: in windows that overlap, every position scored exactly once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Read tokens[start:stop]; keep the rows of positions [first, stop). Positions [start, first) are context only."""

    start: int
    first: int
    stop: int


def windows(num_rows: int, *, window: int, overlap: int) -> list[Window]:
    """The windows over `num_rows` positions. All but the first re-read `overlap` positions that came before."""
    found = [Window(0, 0, min(window, num_rows))]
    while found[-1].stop < num_rows:
        first = found[-1].stop
        start = first - overlap
        found.append(Window(start, first, min(start + window, num_rows)))
    return found
