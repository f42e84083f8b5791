"""Seconds of an optimizer's step, of AdamW, Muon and NorMuon side by side, and of a whole training step with each.

The student is the quickstart's, an OLMo-3 of 17M parameters; its tokens are random, its loss plain cross-entropy. Arms take
turns, one step each, in an order that turns from step to step, so that a machine whose speed drifts slows them alike.

    python benchmarks/optimizers.py --steps 10
"""

import argparse
import statistics
import time

import torch

from limbeck.compute import autocast, pick_device, pick_dtype
from limbeck.objectives.objective import objective_loss
from limbeck.optim import build_optimizer
from limbeck.spec.load import load_recipe
from limbeck.spec.objective import CrossEntropy
from limbeck.spec.optim import AdamW, Muon, NorMuon, Optimizer
from limbeck.students.build import build

ARMS: dict[str, Optimizer] = {
    "adamw": AdamW(),
    "muon": Muon(),
    "muon, polar_express": Muon(orthogonaliser="polar_express"),
    "normuon": NorMuon(),
}
CONTROL = "adamw"
VOCABULARY = 49152


class Arm:
    """A student of its own, and its optimizer."""

    def __init__(self, spec: Optimizer, *, device: torch.device, dtype: torch.dtype, sequences: int) -> None:
        recipe = load_recipe("quickstart")
        self.device, self.dtype = device, dtype
        self.student = build(recipe.student, vocab_size=VOCABULARY, seed=0).to(device)
        self.optimizer = build_optimizer(spec, self.student, dtype=dtype)
        shape = (sequences, recipe.data.sequence_length + 1)
        self.tokens_BT = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0)).to(device)

    def timed_step(self) -> tuple[float, float]:
        """Seconds of the whole step, and of the optimizer in it."""
        started = self._now()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.dtype, self.device):
            hidden_BTD = self.student(self.tokens_BT[:, :-1]).hidden_BTD
            output = objective_loss(
                CrossEntropy(),
                hidden_TD=hidden_BTD.flatten(0, 1),
                head_VD=self.student.head_VD,
                targets_T=self.tokens_BT[:, 1:].flatten(),
                rows=None,
                temperature=1.0,
            )
        output.loss.backward()
        ready = self._now()
        self.optimizer.step()
        ended = self._now()
        return ended - started, ended - ready

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def main() -> None:
    """Print medians, and the median of the paired ratios to AdamW."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each arm, after one that is not")
    parser.add_argument("--sequences", type=int, default=4, help="of the quickstart's length, in a step")
    parser.add_argument("--precision", default="auto", help="of the matrix products, Muon's with the student's")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    dtype = pick_dtype(arguments.precision, device)
    arms = {name: Arm(spec, device=device, dtype=dtype, sequences=arguments.sequences) for name, spec in ARMS.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    names = list(arms)
    for step in range(arguments.steps + 1):
        for name in names[step % len(names) :] + names[: step % len(names)]:
            taken = arms[name].timed_step()
            if step:
                seconds[name].append(taken)
    print(f"{device}, {dtype}, {sum(parameter.numel() for parameter in arms[CONTROL].student.parameters()):,} parameters")
    print(f"{'arm':<20} {'optimizer s':>12} {'over adamw':>11} {'whole step s':>13} {'over adamw':>11}")
    for name, taken in seconds.items():
        cells = []
        for part in (1, 0):
            pairs = zip(taken, seconds[CONTROL], strict=True)
            cells += [statistics.median(each[part] for each in taken)]
            cells += [statistics.median(mine[part] / theirs[part] for mine, theirs in pairs)]
        print(f"{name:<20} {cells[0]:12.4f} {cells[1]:11.2f} {cells[2]:13.4f} {cells[3]:11.3f}")


if __name__ == "__main__":
    main()
