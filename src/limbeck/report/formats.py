"""Numbers as a reader wants them: SI prefixes, powers of ten, real minus signs, a dash for what is not known."""

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limbeck.report.seeds import Spread
from limbeck.report.statistics import Estimate

UNKNOWN = "–"
_TIE = "\N{NO-BREAK SPACE}"
"""Between a number and its unit."""
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def fixed(value: float | None, places: int = 4) -> str:
    """`2.3141`, with U+2212 for a minus and none before a zero."""
    if value is None:
        return UNKNOWN
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float | None, places: int = 4) -> str:
    """`+0.0120` or `−0.1700`."""
    text = fixed(value, places)
    return f"+{text}" if value is not None and value > 0 and float(text) != 0 else text


def interval(estimate: Estimate | None, *, sign: bool = False) -> str:
    """`2.3141 [2.2900, 2.3400]`; the number alone where there is no interval."""
    if estimate is None:
        return UNKNOWN
    form = signed if sign else fixed
    if estimate.low is None or estimate.high is None:
        return form(estimate.value)
    return f"{form(estimate.value)} [{form(estimate.low)},{_TIE}{form(estimate.high)}]"


def spread(value: Spread | None, places: int = 4) -> str:
    """`2.3141 ± 0.0120`; the mean alone of one value."""
    if value is None:
        return UNKNOWN
    return fixed(value.mean, places) if value.sd is None else f"{fixed(value.mean, places)} ± {fixed(value.sd, places)}"


def significant(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """A number of any size with so many significant digits: `0.01234`, `12,340`, `1.23 × 10⁻⁷`."""
    if value is None:
        return UNKNOWN
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        text = power(value).replace("-", "−", 1)
    else:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:,.{places}f}".replace("-", "−")
    return f"+{text}" if sign and value > 0 else text


def count(value: float | None) -> str:
    """`150,016`."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def power(value: float | None) -> str:
    """`1.23 × 10¹²`; `0` for zero."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}{_TIE}×{_TIE}10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def seconds(value: float | None) -> str:
    """`61.2 s`, `12.3 min` from two minutes, `4.5 h` from two hours."""
    if value is None:
        return UNKNOWN
    if value < 120:
        return f"{value:.1f}{_TIE}s"
    return f"{value / 60:.1f}{_TIE}min" if value < 7200 else f"{value / 3600:.1f}{_TIE}h"


def size(value: float | None) -> str:
    """Bytes with a decimal prefix: `1.23 MB`."""
    if value is None:
        return UNKNOWN
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g}{_TIE}{prefix}B"
        value /= 1000
    return f"{value:,.2f}{_TIE}TB"


def ratio(value: float | None, to: float | None) -> str:
    """`1.11×`; a dash where either is missing or zero."""
    return UNKNOWN if value is None or not to else f"{value / to:.2f}×"


def plural(number: int, noun: str) -> str:
    """`1 document`, `36 documents`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted paths, the way overrides are written; None is left out."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}.")
        elif value is not None:
            yield path, value


def pairs(values: Any) -> str:
    """A value of a spec in one line, its kind first: `kind=sotu, first_year=1950`."""
    if isinstance(values, Mapping):
        kind_first = sorted(flatten(values), key=lambda pair: pair[0] != "kind")
        return ", ".join(f"{path}={value}" for path, value in kind_first)
    return UNKNOWN if values is None else str(values)


_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text in which characters that turn the direction of others, or control a device, are written as `U+202E`."""
    without_controls = "".join(
        _named(character) if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" else character
        for character in text
    )
    return _TURNING.sub(lambda found: _named(found[0]), without_controls)


def short(text: str, length: int = 40) -> str:
    """At most so many characters, the rest an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def listed(names: Sequence[str]) -> str:
    """`“a”, “b” and “c”`."""
    quoted = [f"“{name}”" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _named(character: str) -> str:
    return f"U+{ord(character):04X}"
