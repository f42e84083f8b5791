"""Whether what a recipe asks for goes together: vocabularies, stores, lengths."""

import numpy as np

from limbeck.data.token_store import TokenStore
from limbeck.errors import SpecError, StoreError
from limbeck.evals.reference import Reference, reads_alike
from limbeck.signals.codec import row_checks
from limbeck.signals.store import SignalStore
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import ChunksSignal
from limbeck.students.pretrained import vocabulary
from limbeck.students.start import Start
from limbeck.teachers.files import read_config, weights_digest
from limbeck.teachers.huggingface import Teacher
from limbeck.train.parallel import Processes
from limbeck.train.pool import AskedRows
from limbeck.train.texts import Texts


def with_vocabulary(recipe: Recipe, texts: Texts, *, teacher_width: int | None, start: Start | None = None) -> Recipe:
    """The recipe with the student's `vocab_size` filled in and checked: the teacher's logits, without one what the student
    begins with, or else the tokenizer's size.

    A control takes the teacher's too, so that it is the same student; it must be the same where its KL is measured. Of a
    pretrained student it is the model's.
    """
    asked = recipe.student.vocab_size
    if isinstance(recipe.student, HuggingFaceStudent):
        asked = _own_vocabulary(recipe.student, teacher_width=teacher_width)
    if asked is not None and teacher_width is not None and asked != teacher_width:
        raise SpecError(f"{recipe.student.vocab_size_key}={asked}, but the teacher's vocabulary is {teacher_width}: remove it")
    size = asked or teacher_width or (start.vocab_size if start is not None else texts.tokenizer.size)
    check_holds(recipe, texts, size=size)
    return recipe.model_copy(update={"student": recipe.student.with_vocab_size(size)})


def check_holds(recipe: Recipe, texts: Texts, *, size: int | None) -> None:
    """Refuse a vocabulary, where one is asked for, that has not all of the tokenizer's ids."""
    if size is not None and size < texts.tokenizer.size:
        raise SpecError(f"{recipe.student.vocab_size_key}={size} is smaller than the tokenizer's {texts.tokenizer.size} ids")


def check_batch(recipe: Recipe, processes: Processes) -> None:
    """Refuse a batch of which some processes would read more sequences than others."""
    sequences, readers = recipe.batch.sequences, processes.world_size
    if sequences % readers:
        raise SpecError(
            f"batch.sequences={sequences} is not a multiple of the {readers} processes: set it to "
            f"{-(-sequences // readers) * readers}, or start a number of processes that divides it"
        )


def check_reads_whole(recipe: Recipe, texts: Texts) -> None:
    """Refuse rollouts that are longer than the teacher can read: it is given them whole, not in windows."""
    if recipe.on_policy is None or texts.files is None:
        return
    config = read_config(texts.files) or {}
    longest = config.get("text_config", config).get("max_position_embeddings")
    if longest is not None and recipe.data.sequence_length > longest:
        raise SpecError(
            f"data.sequence_length={recipe.data.sequence_length} is more than {texts.files.name} can read of a rollout: set it "
            f"to {longest} or less"
        )


def _own_vocabulary(student: HuggingFaceStudent, *, teacher_width: int | None) -> int:
    size = vocabulary(student)
    if student.vocab_size not in (None, size):
        raise SpecError(f"student.vocab_size={student.vocab_size}, but {student.model} has {size} logits: remove it")
    if teacher_width not in (None, size):
        raise SpecError(
            f"student.model={student.model} has {size} logits and the teacher {teacher_width}: they share no vocabulary; "
            "choose another teacher, or none"
        )
    return size


def teacher_width(
    recipe: Recipe,
    texts: Texts,
    *,
    signals: SignalStore | None,
    teacher: Teacher | AskedRows | None,
    reference: Reference | None,
) -> int:
    """The teacher's logits, from whatever is at hand of it; 0 where nothing is, or nothing compares student and teacher."""
    if texts.across is not None and not _is_same_student(recipe, texts):
        return 0
    if signals is not None and not isinstance(signals.signal, ChunksSignal):
        return signals.identity.vocab_size
    if teacher is not None:
        return teacher.vocab_size
    if reference is not None:
        return len(reference.head_VE)
    if texts.files is None or recipe.student.vocab_size is not None:
        return 0
    if recipe.data.tokenizer is not None and not reads_alike(texts.files, texts.train):
        return 0
    config = read_config(texts.files) or {}
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)


def _is_same_student(recipe: Recipe, texts: Texts) -> bool:
    """Whether a student of terms across tokenizers takes the teacher's logits all the same, as one that learns them does."""
    reads = texts.files is not None and reads_alike(texts.files, texts.train)
    return reads and not isinstance(recipe.student, HuggingFaceStudent)


def check_store(signals: SignalStore, recipe: Recipe, texts: Texts) -> None:
    """Refuse a store that cannot give what the recipe asks: another signal, tokenizer, context, teacher, or other documents."""
    assert recipe.signal is not None
    signals.check_can_serve(
        recipe.signal,
        tokenizer=texts.train.tokenizer_fingerprint,
        teacher_tokenizer=texts.across.tokenizer.fingerprint if texts.across is not None else None,
        vocab_size=recipe.student.vocab_size,
        context=recipe.teacher.context.model_dump(mode="json") if recipe.teacher is not None else None,
    )
    held = signals.identity.teacher
    # A student may train where the teacher's files are not: then there is nothing to compare.
    weights = weights_digest(texts.files) if texts.files is not None else None
    if texts.files is not None and weights is not None and weights != held["weights"]:
        raise StoreError(
            f"{signals.path} was scored by {held['name']} (weights {held['weights']}), but the recipe's teacher is "
            f"{texts.files.name} (weights {weights}): name the store of this teacher, or write one with `limbeck cache write`"
        )
    if weights is not None and texts.files is not None and texts.files.quantisation != held["quantisation"]:
        raise StoreError(
            f"{signals.path} was scored by {held['name']} with quantisation {held['quantisation']}, but the recipe's teacher "
            f"has {texts.files.quantisation}: set teacher.quantisation as the store was written, or name another store"
        )
    if recipe.teacher is not None and recipe.teacher.dtype not in ("auto", held["dtype"]):
        raise StoreError(
            f"{signals.path} was scored in {held['dtype']}, not in teacher.dtype={recipe.teacher.dtype}: name another store"
        )
    missing = signals.missing_documents(texts.train.ids)
    if missing:
        raise StoreError(
            f"{signals.path} lacks {len(missing)} of the {len(texts.train)} training documents (the first: {missing[0]}): "
            "it was written for other texts; run `limbeck cache write` with another store path"
        )
    _check_rendering(signals, texts.train)
    template = texts.across.counterpart.template if texts.across is not None else None
    if template not in (None, signals.identity.teacher_template):  # none: of a store with chats too, only plain texts are read
        raise StoreError(
            f"{signals.path} was scored for what another chat template of the teacher's makes of the chats: put the "
            "template of its tokenizer back, or write another store with `limbeck cache write` and store=PATH"
        )


def _check_rendering(signals: SignalStore, train: TokenStore) -> None:
    """Refuse rows of what another chat template made of the same chats: these are named by what is said in them alone."""
    chats = [index for index in range(len(train)) if train.bodies(index) is not None] if train.has_masks else []
    other = next((index for index in chats if signals.num_rows(train.ids[index]) != train.lengths[index] - 1), None)
    if other is None and chats:
        document = train.document(chats[0])
        rendered = signals.whole([train.ids[chats[0]]]).checks
        other = None if np.array_equal(rendered, row_checks(document)) else chats[0]
    if other is not None:
        raise StoreError(
            f"{signals.path} was scored for what another chat template makes of chat {train.ids[other]}: put the template back "
            "(data.chat_template, or the tokenizer's), or write another store with `limbeck cache write` and store=PATH"
        )
