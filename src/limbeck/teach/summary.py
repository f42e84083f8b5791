"""What came of a teacher's completions, in numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck.teach.select import REASONS, Chosen


@dataclass
class _Kept:
    """Of one effort."""

    drawn: int = 0
    stopped: int = 0
    tokens: list[int] = field(default_factory=list)
    trace_tokens: list[int] = field(default_factory=list)
    log_prob_nats: float = 0.0


class Tally:
    """Counts as completions go by."""

    def __init__(self) -> None:
        self.drawn, self.tokens, self.seconds = 0, 0, 0.0
        self._outcomes: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._efforts: dict[str, _Kept] = {}

    def took(self, seconds: float) -> None:
        """That a group was drawn in."""
        self.seconds += seconds

    def add(self, chosen: Chosen) -> None:
        """One more."""
        record = chosen.record
        self.drawn += 1
        self.tokens += record["tokens"]
        self._outcomes[record["outcome"]] += 1
        kept = self._efforts.setdefault(record.get("reasoning_effort", "none"), _Kept())
        kept.drawn += 1
        kept.stopped += record["outcome"] == "stopped"
        if chosen.reason is not None:
            self._reasons[chosen.reason] += 1
            return
        kept.tokens.append(record["tokens"])
        kept.trace_tokens.append(record["trace_tokens"])
        kept.log_prob_nats += record["log_prob_nats"]

    def summary(self) -> dict[str, Any]:
        """For machines; lengths are in the teacher's tokens, log-probs in nats per token."""
        return {
            "drawn": self.drawn,
            "kept": sum(len(kept.tokens) for kept in self._efforts.values()),
            "dropped": {reason: self._reasons[reason] for reason in REASONS},
            "outcomes": dict(sorted(self._outcomes.items())),
            "tokens_drawn": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "efforts": {name: _of_effort(kept) for name, kept in self._efforts.items()},
        }


def _of_effort(kept: _Kept) -> dict[str, Any]:
    tokens = sum(kept.tokens)
    return {
        "drawn": kept.drawn,
        "stopped": kept.stopped,
        "kept": len(kept.tokens),
        "tokens": tokens,
        "log_prob_nats_per_token": kept.log_prob_nats / tokens if tokens else None,
        "length": _quantiles(kept.tokens),
        "trace_length": _quantiles(kept.trace_tokens),
    }


def _quantiles(lengths: Sequence[int]) -> dict[str, float] | None:
    if not lengths:
        return None
    found = np.quantile(np.asarray(lengths), (0.0, 0.5, 0.9, 1.0))
    return dict(zip(("least", "median", "p90", "most"), map(float, found), strict=True)) | {"mean": float(np.mean(lengths))}
