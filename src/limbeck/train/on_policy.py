"""The on-policy loop: prompts of the step, what is written after them, what the teacher says of that, batches.

A generator with the shape of `Loader.steps`: the training loop takes its batches as it takes those of texts, and every `next`
lets the student write as it then is. Sources: GKD (Agarwal et al., arXiv 2306.13649, algorithm 1); K. Lu et al., "On-Policy
Distillation" (Thinking Machines, 2025); the replay of DistiLLM (arXiv 2402.03898, section 3.2).

What is drawn depends on the weights, the seed, the step and this process's place among all, and what is taken from earlier
steps on the file of rollouts alone: a run that was killed repeats itself.
"""

import itertools
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from limbeck.data.loader import Batch, LiveRowSource
from limbeck.errors import LimbeckError
from limbeck.evals.generate import synchronise
from limbeck.signals.types import SignalRows
from limbeck.spec.on_policy import shares
from limbeck.students.decoder import Decoder
from limbeck.train.guards import Watch
from limbeck.train.measure import SERVED, save_student
from limbeck.train.parallel import any_says, wait_for_all
from limbeck.train.rollout_batches import batches_from
from limbeck.train.rollout_file import RolloutFile, forget_processes
from limbeck.train.rollouts import Rollout, Writer
from limbeck.train.setup import Setup

WRITERS: tuple[Writer, ...] = ("student", "teacher")


class OnPolicySteps:
    """Steps whose sequences are written on the way. `numbers` says how the last of them went."""

    def __init__(self, setup: Setup, path: Path, *, began: int = 0) -> None:
        """`path` is the run's folder. Of a stage that `began` at a later step than 0, prompts and texts count from there."""
        assert setup.writers is not None and setup.recipe.on_policy is not None
        self.setup, self.spec, self.writers = setup, setup.recipe.on_policy, setup.writers
        self.source = cast("LiveRowSource", setup.loader.source)
        self.counts = shares(self.spec.sources, setup.recipe.batch.sequences)
        self.numbers: dict[str, float] = {}
        self._path, self._began = path, began
        self._file = RolloutFile(path, rank=setup.processes.rank)
        self._watch = Watch(setup)
        self._current: list[Rollout] = []
        self._earlier: deque[Rollout] = deque(maxlen=0 if self.spec.replay is None else self.spec.replay.capacity)

    def steps(self, first: int) -> Generator[list[Batch], None, None]:
        """Micro-batches of step `first`, `first + 1`, ... without end."""
        self._return_to(first)
        for step in itertools.count(first):
            seconds: dict[str, float] = {}
            begins = self._begins(step)
            with self._timed("generate_seconds", seconds):
                if step == begins:
                    self._write(step)
                rollouts = [*self._current, *self._replayed(begins)]
            with self._timed("teach_seconds", seconds):
                read = self.source.tokens_scored
                rows = self.source.rows_of([rollout.tokens for rollout in rollouts]) if rollouts else None
                read = self.source.tokens_scored - read
                batches = [*self._of_rollouts(rollouts, rows), *self._of_texts(step)]
            counted = sum(batch.counted for batch in batches)
            self.numbers = seconds | self._watch(self._current, rows, counted=counted)
            yield [self._with_costs(batches[0], read=read, wrote=step == begins), *batches[1:]]

    def logged(self, *, seconds: float) -> dict[str, float]:
        """Of the last step, which took so many seconds in all: its phases, and what is watched."""
        training = seconds - self.numbers["generate_seconds"] - self.numbers["teach_seconds"]
        return self.numbers | {"train_seconds": training}

    def _begins(self, step: int) -> int:
        """The step before which the rollouts of this one are written."""
        return step - (step - self._began) % self.spec.steps_per_rollout

    def _slots(self, step: int, source: str) -> range:
        """Which of all sequences from a source this process makes in the step of that number: they are dealt out in turns."""
        before = sum(count for name, count in list(self.counts.items())[: list(self.counts).index(source)])
        start, count, processes = step * self.counts[source], self.counts[source], self.setup.processes
        return range(start + (processes.rank - before) % processes.world_size, start + count, processes.world_size)

    def _write(self, step: int) -> None:
        """Let student and teacher continue their prompts."""
        self._earlier.extend(rollout for rollout in self._current if rollout.writer == "student")
        self._current = []
        if "student" in self.writers.samplers:
            if self.setup.processes.is_first:
                self.writers.samplers["student"].refresh(step, self._saved)
            wait_for_all(self.setup.processes)
        for writer in WRITERS:
            slots = self._slots_to_write(step, writer)
            prompts = [self.writers.prompts.prompt(slot // self.spec.group_size) for slot in slots]
            key = f"{self.setup.recipe.seed} {step} {writer} {self.setup.processes.rank}"
            drawn = self.writers.samplers[writer].draw(prompts, key=key) if prompts else []
            for prompt, continuation in zip(prompts, drawn, strict=True):
                text = self.setup.texts.tokenizer.backend.decode(list(continuation.tokens), clean_up_tokenization_spaces=False)
                named = prompt.name, tuple(prompt.tokens.tolist())
                self._current.append(Rollout(step + 1, writer, *named, continuation, text))
        self._file.add(self._current)

    def _slots_to_write(self, begins: int, writer: Writer) -> range:
        """This process's, of the rollouts that are written before that step."""
        slots = self._slots((begins - self._began) // self.spec.steps_per_rollout, writer)
        return slots[self._replays() if writer == "student" else 0 :]

    def _saved(self) -> Path:
        """A folder with the student as it is."""
        save_student(self.setup, self.setup.student, self._path / SERVED)
        return self._path / SERVED

    def _replays(self) -> int:
        """How many of the student's sequences are earlier ones: the first of the step's; none before there are enough."""
        if self.spec.replay is None:
            return 0
        of_all, processes = self.spec.replay.of(self.counts["student"]), self.setup.processes
        mine = len(range(processes.rank, of_all, processes.world_size))
        return mine if mine <= len(self._earlier) else 0

    def _replayed(self, begins: int) -> list[Rollout]:
        """Earlier rollouts of the student, each at most once."""
        numbers = np.random.default_rng([self.setup.recipe.seed, begins, self.setup.processes.rank])
        chosen = numbers.choice(len(self._earlier), size=self._replays(), replace=False) if self._earlier else ()
        return [self._earlier[int(place)] for place in chosen]

    def _return_to(self, first: int) -> None:
        """Forget what a killed run wrote after its checkpoint, and remember what it wrote before.

        `LimbeckError` in all processes where one lacks what the next step learns from.
        """
        self._file.rewind(first)
        begins = self._begins(first)
        for rollout in self._file.read():
            if rollout.step == begins + 1:
                self._current.append(rollout)
            elif rollout.writer == "student" and rollout.step > self._began:
                self._earlier.append(rollout)
        processes = self.setup.processes
        if any_says(self._lacks(first), processes, self.setup.device):
            raise LimbeckError(
                f"{self._path}: step {first + 1} learns from rollouts of earlier steps, which these {processes.world_size} "
                "processes do not find as they left them: resume with as many processes as before and with the run's "
                "rollouts*.jsonl in place, or train under another name"
            )
        if processes.is_first:
            forget_processes(self._path, beyond=processes.world_size, step=first)

    def _lacks(self, first: int) -> bool:
        """Whether the files are not those of as many processes, or not whole."""
        begins = self._begins(first)
        if begins < first and len(self._current) != sum(len(self._slots_to_write(begins, writer)) for writer in WRITERS):
            return True
        if self.spec.replay is None or first == self._began:
            return False
        beyond = RolloutFile(self._path, rank=self.setup.processes.world_size)
        return not self._file.path.is_file() or any(rollout.step <= first for rollout in beyond.read())

    def _of_rollouts(self, rollouts: Sequence[Rollout], rows: SignalRows | None) -> list[Batch]:
        if rows is None:
            return []
        size = self.setup.loader.micro_sequences
        marks = bool(isinstance(self.setup.student, Decoder) and self.setup.student.experts())
        masked = self.spec.mask_truncated
        return batches_from(rollouts, rows, micro_sequences=size, mask_truncated=masked, marks_padding=marks)

    def _of_texts(self, step: int) -> list[Batch]:
        """Rows of the training texts with the teacher's."""
        loader, slots = self.setup.loader, self._slots(step - self._began, "data")
        groups = [slots[start : start + loader.micro_sequences] for start in range(0, len(slots), loader.micro_sequences)]
        return [loader.batch([loader.stream.sequence(slot) for slot in group]) for group in groups]

    def _with_costs(self, batch: Batch, *, read: int, wrote: bool) -> Batch:
        """With what was read in this step to write and to teach; whoever writes reads all but the last token."""
        by: dict[Writer, int] = dict.fromkeys(WRITERS, 0)
        for rollout in self._current if wrote else ():
            by[rollout.writer] += len(rollout.tokens) - 1
        return replace(batch, tokens_scored=batch.tokens_scored + read + by["teacher"], tokens_generated=by["student"])

    @contextmanager
    def _timed(self, name: str, seconds: dict[str, float]) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        synchronise(self.setup.device)
        seconds[name] = time.perf_counter() - begun
