"""Training tokens a second of Limbeck's loop, of the Hugging Face Trainer and of a loop written by hand, side by side.

All three train the same OLMo-3 student by cross-entropy with AdamW on the same rows, in the same precision and batch:

* `limbeck`: `optimizer_step` on batches from the recipe's loader, as `limbeck train` does.
* `bare loop`: the same decoder, all logits at once, torch's cross-entropy, gradient clipping and fused AdamW; tokens in memory.
* `bare loop, transformers`: the same loop around transformers' `Olmo3ForCausalLM` (SDPA), told the same weights.
* `trainer`: transformers' Trainer around that model: its collator, its cross-entropy, its fused AdamW.

Arms take turns of a few steps, in an order that turns from round to round, so that a machine whose speed drifts slows them
alike; a Trainer's turn begins when its first step does. Ratios are medians over rounds of Limbeck's speed over the arm's. Rows
are plain (`data.packing=plain`): one causal mask, which is the Trainer's home ground. The vocabulary is that of the tokenizer,
or of `--vocabulary` ids if that is more.

    python lab/small_tokenizer.py out/bpe-1024 --size 1024 && python benchmarks/training_speed.py --tokenizer out/bpe-1024
    python benchmarks/training_speed.py --vocabulary 100278
    python benchmarks/training_speed.py --vocabulary 100278 --sequences 64 --length 2048 --device cuda
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from limbeck.compute import autocast
from limbeck.data.loader import Batch
from limbeck.optim.build import build_optimizer
from limbeck.spec.load import load_recipe
from limbeck.students import hf
from limbeck.train.loop import optimizer_step
from limbeck.train.setup import Setup, open_setup


class Ours:
    """Limbeck's loop."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.optimizer = setup, build_optimizer(setup.recipe.optimizer, setup.student, dtype=setup.dtype)

    def turn(self, first: int, *, steps: int) -> float:
        """Seconds of `steps` steps."""
        started = now(self.setup.device)
        ahead = self.setup.loader.steps(first)
        for _ in range(steps):
            optimizer_step(self.setup, self.optimizer, next(ahead))
        taken = now(self.setup.device) - started
        ahead.close()
        return taken


class Bare:
    """A loop of ten lines around any model; `logits` runs it."""

    def __init__(self, setup: Setup, model: nn.Module, logits: Callable[[Tensor], Tensor], batches: list[Batch]) -> None:
        self.setup, self.model, self.logits, self.batches = setup, model, logits, batches
        self.optimizer = build_optimizer(setup.recipe.optimizer, model)

    def turn(self, first: int, *, steps: int) -> float:
        """Seconds of `steps` steps."""
        device = self.setup.device
        started = now(device)
        for batch in self.batches[first : first + steps]:
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.setup.dtype, device):
                logits_TV = self.logits(batch.tokens_BT.to(device)).flatten(0, 1)
            cross_entropy(logits_TV.float(), batch.targets_BT.flatten().to(device)).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        return now(device) - started


class Clock(TrainerCallback):
    """When a Trainer's first step began and its last one ended."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started, self.ended = device, math.nan, math.nan

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Of every step; the first counts."""
        if math.isnan(self.started):
            self.started = now(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Of every step; the last counts."""
        self.ended = now(self.device)


class HuggingFaceTrainer:
    """The Trainer, begun anew each turn on the same model."""

    def __init__(self, setup: Setup, model: nn.Module, batches: list[Batch], folder: str) -> None:
        self.setup, self.model, self.batches, self.folder = setup, model, batches, folder

    def turn(self, first: int, *, steps: int) -> float:
        """Seconds of `steps` steps."""
        optimizer, sequences = self.setup.recipe.optimizer, self.setup.recipe.batch.sequences
        rows = [row for batch in self.batches[first : first + steps] for row in batch.tokens_BT]
        clock = Clock(self.setup.device)
        arguments = TrainingArguments(
            output_dir=self.folder,
            per_device_train_batch_size=sequences,
            max_steps=steps,
            bf16=self.setup.dtype == torch.bfloat16,
            use_cpu=self.setup.device.type == "cpu",
            learning_rate=optimizer.lr,
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=steps,
        )
        trainer = Trainer(
            model=self.model,
            args=arguments,
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],
            data_collator=default_data_collator,
            callbacks=[clock],
        )
        trainer.train()
        return clock.ended - clock.started


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def arms_of(setup: Setup, folder: Path, *, turns: int) -> dict[str, Any]:
    """The arms, each with a student of its own that begins with the same weights."""
    assert setup.recipe.student.vocab_size is not None
    batches = [setup.loader.step(step)[0] for step in range(turns)]
    hf.save(
        setup.student, spec=setup.recipe.student, folder=folder / "student", max_positions=setup.recipe.data.sequence_length
    )
    ours, _, _ = hf.load(folder / "student")
    theirs = [AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32) for _ in range(2)]
    for model in (ours, *theirs):
        model.to(setup.device).train()
    return {
        "limbeck": Ours(setup),
        "bare loop": Bare(setup, ours, lambda tokens_BT: ours.logits(ours(tokens_BT).hidden_BTD), batches),
        "bare loop, transformers": Bare(setup, theirs[0], lambda tokens_BT: theirs[0](tokens_BT).logits, batches),
        "trainer": HuggingFaceTrainer(setup, theirs[1], batches, str(folder / "trainer")),
    }


def main() -> None:
    """Print tokens a second of each arm, and how many times as fast Limbeck is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="nano", help="whose student is trained")
    parser.add_argument("--vocabulary", type=int, help="default: the tokenizer's size")
    parser.add_argument("--tokenizer", help="a folder; default: SmolLM2's tokenizer")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each arm, after one that is not counted")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student = load_recipe(arguments.recipe).student.model_copy(update={"vocab_size": arguments.vocabulary})
        overrides: dict[str, Any] = {
            "student": student.model_dump(),
            "data.packing": "plain",
            "data.sequence_length": arguments.length,
            "data.train.sample_tokens": None,
            "objective": {"kind": "ce"},
            "optimizer.clip_norm": 1.0,
            "batch.sequences": arguments.sequences,
            "evaluation.kl_to_teacher": False,
            "precision": arguments.precision,
            "device": arguments.device,
        }
        if arguments.tokenizer:
            overrides |= {"data.tokenizer": arguments.tokenizer, "teacher": None, "signal": None}
        setup = open_setup(load_recipe("quickstart", overrides))
        arms = arms_of(setup, folder, turns=(arguments.rounds + 1) * arguments.steps)
        names, seconds = list(arms), {name: [] for name in arms}
        for round_ in range(arguments.rounds + 1):
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                taken = arms[name].turn(round_ * arguments.steps, steps=arguments.steps)
                if round_:
                    seconds[name].append(taken / arguments.steps)
    tokens = arguments.sequences * arguments.length
    parameters = sum(parameter.numel() for parameter in setup.student.parameters())
    print(f"{parameters:,} parameters, {setup.recipe.student.vocab_size:,} ids, {setup.dtype}, {setup.device}")
    print(f"{tokens} tokens a step, {arguments.rounds} rounds of {arguments.steps} steps")
    print("| arm | s/step | tokens/s | limbeck's speed over it: median | least to greatest |\n|---|---|---|---|---|")
    for name, taken in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(taken, seconds["limbeck"], strict=True)]
        median = statistics.median(taken)
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"| {name} | {median:.3f} | {tokens / median:,.0f} | {statistics.median(ratios):.2f} | {spread} |")


if __name__ == "__main__":
    main()
