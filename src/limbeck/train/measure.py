"""Measuring the student of a run on its held-out documents, and what the run leaves when it ends."""

from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import torch

from limbeck.data.tokenizers import save_tokenizer
from limbeck.evals.bits_per_byte import HeldOut, evaluate
from limbeck.evals.student import StudentReader
from limbeck.runs import Costs, RunWriter
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import Context
from limbeck.students import hf
from limbeck.students.decoder import Decoder
from limbeck.students.model import StudentModel
from limbeck.students.pretrained import PretrainedStudent
from limbeck.students.pretrained_folder import save_pretrained
from limbeck.train.expert_watch import forget_experts, watch_experts
from limbeck.train.resume import forget_checkpoints
from limbeck.train.setup import Setup
from limbeck.train.sharding import gathered, head_gathered

SERVED = "served"
"""Inside a run's folder while it goes on: the student for a server of completions."""


def measure(setup: Setup, *, dtype: torch.dtype, last: bool = False) -> HeldOut:
    """The student on the held-out documents, in windows of its own sequence length that do not overlap.

    On the way it is measured in the precision of training, which is quick. The `last` time, and where it is kept, it is
    measured in float32, as `limbeck eval` does; the last time beside the teacher. Where the student is sharded all processes
    call it, and read the same.
    """
    with head_gathered(setup.student):
        return evaluate(
            StudentReader(setup.student, device=setup.device, dtype=dtype),
            setup.texts.heldout,
            context=Context(window=setup.recipe.data.sequence_length, overlap=0),
            reference=setup.reference if last else None,
            title=f"evaluating {setup.recipe.name}",
        )


def finish(setup: Setup, costs: Costs, *, path: Path, writer: RunWriter | None, whole: Recipe | None = None) -> None:
    """Last evaluation, the student as a Hugging Face folder, then the summary. All processes call it; one has a `writer`.

    `whole` is the recipe of which the one that is set up is the last stage, where it is one.
    """
    if writer is None and not setup.sharded:
        return
    recipe = setup.recipe
    if not setup.sharded:  # an adapter beside shards is merged in the whole copy that is saved
        setup.student.settle()
    heldout = measure(setup, dtype=torch.float32, last=True)
    student = gathered(setup.student, setup.processes)
    if writer is not None:  # of a run that was killed between here and its summary
        writer.forget("eval", step=costs.step)
        writer.forget("experts", step=costs.step)
    watch_experts(setup, whole or recipe, costs, path=path, writer=writer)
    if writer is None:
        return
    assert student is not None
    writer.record("eval", costs, bits_per_byte=heldout.bits_per_byte, kl_to_teacher_nats=heldout.kl_to_teacher_nats)
    save_student(setup, student, path / "student")
    parameters = setup.student_costs.parameters
    writer.finish(
        costs,
        arm=recipe.name,
        bits_per_byte=heldout.bits_per_byte,
        kl_to_teacher_nats=heldout.kl_to_teacher_nats,
        heldout_tokens=heldout.tokens,
        heldout_bytes=heldout.bytes,
        heldout_documents=heldout.documents,
        bits_per_byte_by_document=list(zip(heldout.bytes_by_document, heldout.bits_by_document, strict=True)),
        parameters={
            "total": parameters.total,
            "embedding": parameters.embedding,
            "non_embedding": parameters.non_embedding,
            "trained": setup.student_costs.trained,
        },
        student_flops_per_token=setup.student_costs.forward_flops,
        teacher_flops_per_token=setup.teacher_flops_per_scored_token,
        tokens_per_second=costs.tokens / costs.seconds if costs.seconds else None,
        precision=str(setup.dtype).removeprefix("torch."),
        teacher=_teacher(setup),
        start=asdict(setup.start) if setup.start is not None else None,
        padding_share=setup.loader.stream.padding_share,
        documents_left_out=setup.loader.stream.left_out,
        chats={"train": setup.texts.train.chats, "heldout": setup.texts.heldout.chats},
    )
    forget_checkpoints(path)
    forget_experts(path)
    rmtree(path / SERVED, ignore_errors=True)


def save_student(setup: Setup, student: StudentModel, folder: Path) -> None:
    """The whole student as a folder, with its tokenizer."""
    with TemporaryDirectory() as tokenizer_folder:
        save_tokenizer(setup.texts.tokenizer, Path(tokenizer_folder))
        _save(setup, student, folder, tokenizer_folder=Path(tokenizer_folder))


def _save(setup: Setup, student: StudentModel, folder: Path, *, tokenizer_folder: Path) -> None:
    spec, tokenizer = setup.recipe.student, setup.texts.tokenizer
    if isinstance(spec, HuggingFaceStudent):
        assert isinstance(student, PretrainedStudent)
        pruning = None if setup.pruned is None else setup.pruned.text
        save_pretrained(student, spec=spec, folder=folder, tokenizer_folder=tokenizer_folder, pruning=pruning)
        return
    assert isinstance(student, Decoder)
    hf.save(
        student,
        spec=spec,
        folder=folder,
        max_positions=setup.recipe.data.sequence_length,
        tokenizer_folder=tokenizer_folder,
        bos_token_id=tokenizer.start_id,
        eos_token_id=tokenizer.end_id,
    )


def _teacher(setup: Setup) -> dict[str, Any] | None:
    """The teacher beside the student: its own bits per byte on the same documents."""
    beside = setup.reference or setup.teacher_apart
    if beside is None:
        return None
    return {
        "name": beside.teacher,
        "bits_per_byte": beside.bits_per_byte,
        "flops_per_token": setup.teacher_flops_per_scored_token or None,
    }
