"""What is watched in a student that reads what it writes: whether it still stops, repeats itself, grows long or narrow.

Lengths grow, cut-off rollouts take over, repetition sets in; and inside a loop student and teacher agree, so that a loss does
not show it (arXiv 2604.08527). Where the divergence falls and these rise, the run is collapsing.

Numbers are means over the student's new rollouts, on all processes:
- `rollout_tokens`, `stopped_share`, `truncated_share`, `loop_share` (those that end in a loop), `seq_rep_4`;
- `student_entropy_nats`: the mean of -log q of drawn tokens, an unbiased estimate of the entropy at the visited prefixes;
- `log_ratio_nats`, of a dense teacher at temperature 1: the mean of log q - log p of drawn tokens, at `COMPARED` positions of a
  process;
- `topk_mass`, of a teacher's top-k: the share of drawn tokens among them, an unbiased estimate of the student's mass there.

Shapes: N drawn tokens.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.evals.repetition import seq_rep, terminal_loop
from limbeck.signals.rows import mass_on, rows_at, to_device
from limbeck.signals.types import DenseRows, SignalRows, TopKRows
from limbeck.spec.signal import DenseSignal
from limbeck.train.parallel import sum_values
from limbeck.train.rollouts import Rollout
from limbeck.train.setup import Setup

COMPARED = 128
"""A dense teacher's probability of a drawn token costs a pass of its head."""
PATIENCE = 20
"""Bad steps in a row after which a run ends, or such that nothing counts in."""


class RolloutsError(LimbeckError):
    """The student does not write what it could learn from."""


@dataclass
class Sums:
    """Over rollouts, their tokens, and the positions where they are held against the teacher's rows."""

    rollouts: float = 0.0
    stopped: float = 0.0
    loops: float = 0.0
    bad: float = 0.0
    """Truncated, or ending in a loop, or both."""
    seq_rep_4: float = 0.0
    tokens: float = 0.0
    surprise_nats: float = 0.0
    compared: float = 0.0
    against_teacher: float = 0.0
    counted: float = 0.0
    """Positions of the step that have a loss, whatever they are of."""


class Watch:
    """Call with the new rollouts of every step; `RolloutsError` where too many are bad for too long, or nothing counts.

    Steps are counted in this process's life: a run that is resumed is given `PATIENCE` steps again.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._bad_steps = self._idle_steps = 0
        self._compared = "log_ratio_nats" if isinstance(setup.recipe.signal, DenseSignal) else "topk_mass"

    def __call__(self, rollouts: Sequence[Rollout], rows: SignalRows | None, *, counted: int) -> dict[str, float]:
        """What is logged: nothing where the student writes nothing.

        `rows` are the teacher's at all positions of the rollouts, in their order; others may follow. `counted` are the
        positions of the step that have a loss.
        """
        sums, device = _sums(rollouts), self.setup.device
        sums.counted = counted
        if rows is not None:
            sums.compared, sums.against_teacher = _against_teacher(rollouts, rows, device=device)
        summed = sum_values(torch.tensor(astuple(sums), dtype=torch.float64, device=device), self.setup.processes)
        total = Sums(*summed.tolist())
        self._require_some(total.counted)
        if not total.rollouts:
            return {}
        self._require_good(total.bad / total.rollouts)
        return {
            "rollout_tokens": total.tokens / total.rollouts,
            "stopped_share": total.stopped / total.rollouts,
            "truncated_share": 1 - total.stopped / total.rollouts,
            "loop_share": total.loops / total.rollouts,
            "seq_rep_4": total.seq_rep_4 / total.rollouts,
            "student_entropy_nats": total.surprise_nats / total.tokens,
            **({self._compared: total.against_teacher / total.compared} if total.compared else {}),
        }

    def _require_some(self, counted: float) -> None:
        """A budget in tokens would never be spent."""
        self._idle_steps = 0 if counted else self._idle_steps + 1
        if self._idle_steps >= PATIENCE:
            raise RolloutsError(
                f"{self.setup.recipe.run_path}: in {PATIENCE} steps in a row every rollout was cut off, which "
                "on_policy.mask_truncated leaves out of the loss: raise on_policy.max_new_tokens, heal the student on texts "
                "first, or set mask_truncated=false; the checkpoint is kept"
            )

    def _require_good(self, bad_share: float) -> None:
        spec = self.setup.recipe.on_policy
        assert spec is not None
        self._bad_steps = self._bad_steps + 1 if spec.stop_share is not None and bad_share > spec.stop_share else 0
        if self._bad_steps >= PATIENCE:
            raise RolloutsError(
                f"{self.setup.recipe.run_path}: more than on_policy.stop_share={spec.stop_share} of the rollouts of {PATIENCE} "
                f"steps in a row were cut off or ended in a loop ({bad_share:.2f} of the last): read rollouts.jsonl there, "
                "heal the student on texts first, or mix other on_policy.sources in; the checkpoint is kept"
            )


def _sums(rollouts: Sequence[Rollout]) -> Sums:
    """Over the student's."""
    total = Sums()
    for rollout in rollouts:
        if rollout.writer != "student":
            continue
        stopped, loops = rollout.continuation.stopped, terminal_loop(rollout.written) is not None
        total.rollouts += 1
        total.stopped += stopped
        total.loops += loops
        total.bad += loops or not stopped
        total.seq_rep_4 += seq_rep(rollout.written, n=4)
        total.tokens += len(rollout.continuation.tokens)
        total.surprise_nats -= sum(rollout.continuation.log_probs)
    return total


def _against_teacher(rollouts: Sequence[Rollout], rows: SignalRows, *, device: torch.device) -> tuple[float, float]:
    """Positions at which the student's drawn tokens are compared, and the sum there; none with other signals."""
    position_N, token_N, log_prob_N = _drawn(rollouts)
    if not isinstance(rows, TopKRows | DenseRows) or not len(position_N):
        return 0.0, 0.0
    if isinstance(rows, DenseRows) and rows.temperature != 1:
        return 0.0, 0.0
    if isinstance(rows, DenseRows):
        kept = torch.linspace(0, len(position_N) - 1, min(COMPARED, len(position_N))).long()
        position_N, token_N, log_prob_N = position_N[kept], token_N[kept], log_prob_N[kept]
        mass_N = mass_on(to_device(rows_at(rows, position_N), device), token_N.to(device)).cpu()
        return float(len(kept)), float((log_prob_N - mass_N.clamp(min=torch.finfo(mass_N.dtype).tiny).log()).sum())
    return float(len(position_N)), float((mass_on(rows_at(rows, position_N), token_N) > 0).sum())


def _drawn(rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the student's drawn tokens: the positions, among all rows, that they are drawn at; which; their log-probs."""
    first = 0
    positions: list[int] = []
    tokens: list[int] = []
    log_probs: list[float] = []
    for rollout in rollouts:
        length = len(rollout.tokens) - 1
        if rollout.writer == "student":
            positions += range(first + len(rollout.prompt_tokens) - 1, first + length)
            tokens += rollout.continuation.tokens
            log_probs += rollout.continuation.log_probs
        first += length
    return torch.tensor(positions).long(), torch.tensor(tokens).long(), torch.tensor(log_probs)
