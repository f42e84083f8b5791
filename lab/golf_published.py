"""The mistakes of parameter-golf's distillation entry (openai/parameter-golf, pull request 1029), on purpose.

`over_length` is a forward KL that is divided by the sequence's length although it is a mean over positions already. As a script
it writes a signal store whose rows belong to other text. (The third, a live teacher that is not used: `golf-seconds.yaml`.)

    python lab/golf_published.py lab/golf.yaml published-hard-alpha0.1-seed0 -o out/golf/stores/misaligned

Which cell's teacher reads, and which signal is stored, is that of the cell.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limbeck.compute import pick_device
from limbeck.objectives.divergences import forward_kl
from limbeck.objectives.head import HeadStatistics
from limbeck.signals.types import SparseTarget
from limbeck.spec.load import load_study
from limbeck.study.expand import expand
from limbeck.teachers.cache import write_stores
from limbeck.teachers.huggingface import Teacher, load_teacher
from limbeck.train.texts import open_texts

LENGTH = 256
"""Of a sequence in `lab/golf-base.yaml`; 2,048 in the entry."""


def over_length(student: HeadStatistics, target: SparseTarget) -> Tensor:
    """Forward KL over the head and its tail, nats per position, divided by the sequence length."""
    return forward_kl(student, target) / LENGTH


@dataclass(frozen=True)
class Misaligned(Teacher):
    """A teacher whose words about one text are written down beside another."""

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Of a place half the text's length away."""
        return super().logits(tokens_BT).roll(tokens_BT.shape[1] // 2, dims=1)


def main() -> None:
    """Write the store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("cell")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--folder", default="out/golf", help="the study's")
    arguments = parser.parse_args()
    recipe = expand(load_study(arguments.study), output=arguments.folder, overrides={})[arguments.cell].recipe
    assert recipe.teacher is not None and recipe.signal is not None and not recipe.signal.live
    teacher = load_teacher(recipe.teacher, device=pick_device("auto"))
    assert teacher.head_VE is None, "under a softcap logits are all that is asked for"
    wrong = Misaligned(**vars(teacher))
    write_stores(wrong, open_texts(recipe).train, {arguments.output: recipe.signal}, context=recipe.teacher.context)  # type: ignore[dict-item]
    print(arguments.output)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
