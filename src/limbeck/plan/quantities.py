"""Amounts as people write them: `1B` parameters, `5T` tokens, `1e21` FLOPs."""

from limbeck.errors import SpecError

LETTERS = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def is_amount(text: str) -> bool:
    """Whether `text` is a number, with or without a letter behind it."""
    return _read(text) is not None


def amount(text: str, *, source: str, least: float = 0.0) -> float:
    """The number that `text` says; `SpecError` naming `source` where it says none, or less than `least`."""
    value = _read(text)
    if value is None or not value < float("inf"):
        raise SpecError(f"{source}={text!r} is not an amount: write a number such as 3e8, 198M, 1B or 5T")
    if value <= 0 or value < least:
        raise SpecError(f"{source}={text}: must be {f'at least {least:g}' if least else 'more than zero'}")
    return value


def _read(text: str) -> float | None:
    text = text.strip().replace("_", "").replace(",", "")
    letter = LETTERS.get(text[-1:].upper())
    try:
        return float(text[:-1]) * letter if letter is not None else float(text)
    except ValueError:
        return None
