"""Measuring the student of a run on its held-out documents, and what the run leaves when it ends."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from limbeck.data.tokenizers import save_tokenizer
from limbeck.evals.bits_per_byte import HeldOut, evaluate
from limbeck.evals.student import StudentReader
from limbeck.plan.accounting import TRAINING_OVER_FORWARD, student_parameters
from limbeck.runs import Costs, RunWriter
from limbeck.spec.teacher import Context
from limbeck.students import hf
from limbeck.train.resume import forget_checkpoints
from limbeck.train.setup import Setup
from limbeck.train.sharding import gathered, head_gathered


def measure(setup: Setup, *, last: bool = False) -> HeldOut:
    """The student on the held-out documents, in windows of its own sequence length that do not overlap.

    On the way it is measured in the precision of training, which is quick. The `last` time it is measured in float32, as
    `limbeck eval` does, and beside the teacher. Where the student is sharded all processes call it, and read the same.
    """
    with head_gathered(setup.student):
        return evaluate(
            StudentReader(setup.student, device=setup.device, dtype=torch.float32 if last else setup.dtype),
            setup.texts.heldout,
            context=Context(window=setup.recipe.data.sequence_length, overlap=0),
            reference=setup.reference if last else None,
            title=f"evaluating {setup.recipe.name}",
        )


def finish(setup: Setup, costs: Costs, *, path: Path, writer: RunWriter | None) -> None:
    """Last evaluation, the student as a Hugging Face folder, then the summary. All processes call it; one has a `writer`."""
    if writer is None and not setup.sharded:
        return
    recipe, tokenizer = setup.recipe, setup.texts.tokenizer
    assert recipe.student.vocab_size is not None
    heldout = measure(setup, last=True)
    student = gathered(setup.student, setup.processes)
    if writer is None:
        return
    assert student is not None
    writer.forget("eval", step=costs.step)  # of a run that was killed between here and its summary
    writer.record("eval", costs, bits_per_byte=heldout.bits_per_byte, kl_to_teacher_nats=heldout.kl_to_teacher_nats)
    with TemporaryDirectory() as tokenizer_folder:
        save_tokenizer(tokenizer, Path(tokenizer_folder))
        hf.save(
            student,
            spec=recipe.student,
            folder=path / "student",
            max_positions=recipe.data.sequence_length,
            tokenizer_folder=Path(tokenizer_folder),
            bos_token_id=tokenizer.start_id,
            eos_token_id=tokenizer.end_id,
        )
    parameters = student_parameters(recipe.student, vocab_size=recipe.student.vocab_size)
    writer.finish(
        costs,
        arm=recipe.name,
        bits_per_byte=heldout.bits_per_byte,
        kl_to_teacher_nats=heldout.kl_to_teacher_nats,
        heldout_tokens=heldout.tokens,
        heldout_bytes=heldout.bytes,
        heldout_documents=heldout.documents,
        bits_per_byte_by_document=list(zip(heldout.bytes_by_document, heldout.bits_by_document, strict=True)),
        parameters={"total": parameters.total, "embedding": parameters.embedding, "non_embedding": parameters.non_embedding},
        student_flops_per_token=setup.step_costs.student_flops / setup.step_costs.tokens / TRAINING_OVER_FORWARD,
        teacher_flops_per_token=setup.teacher_flops_per_scored_token,
        tokens_per_second=costs.tokens / costs.seconds,
        precision=str(setup.dtype).removeprefix("torch."),
        teacher=_teacher(setup),
    )
    forget_checkpoints(path)


def _teacher(setup: Setup) -> dict[str, Any] | None:
    """The teacher beside the student: its own bits per byte on the same documents."""
    if setup.reference is None:
        return None
    return {
        "name": setup.reference.teacher,
        "bits_per_byte": setup.reference.bits_per_byte,
        "flops_per_token": setup.teacher_flops_per_scored_token or None,
    }
