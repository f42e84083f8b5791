"""Evaluating any Hugging Face causal language model, a run's student among them, on held-out documents."""

from limbeck.compute import pick_device
from limbeck.data.chat_template import with_chat_template
from limbeck.data.prepare import prepare_texts
from limbeck.data.tokenizers import load_tokenizer
from limbeck.evals.bits_per_byte import HeldOut, evaluate
from limbeck.evals.reference import Reference, reads_alike, teacher_reference
from limbeck.progress import say
from limbeck.spec.data import Texts
from limbeck.spec.teacher import Context, DType, HuggingFaceTeacher, Teacher
from limbeck.teachers.files import locate
from limbeck.teachers.huggingface import load_teacher


def evaluate_model(
    model: str,
    *,
    texts: Texts,
    context: Context,
    teacher: Teacher | None,
    device: str = "auto",
    dtype: DType = "auto",
    loss_on: tuple[str, ...] | None = None,
    chat_template: str | None = None,
) -> HeldOut:
    """Bits per byte of the model in a folder or of a hub id; with a `teacher` of the same tokenizer, also the KL to it.

    `loss_on` and `chat_template` are those of a recipe's data, for chats.
    """
    tokenizer = with_chat_template(load_tokenizer(model), chat_template)
    store = prepare_texts(texts, tokenizer, title="held-out", loss_on=loss_on)
    where = pick_device(device)
    reader = load_teacher(HuggingFaceTeacher(model=model, dtype=dtype, context=context), device=where)
    reference: Reference | None = None
    if teacher is not None and reads_alike(locate(teacher), store):
        reference = teacher_reference(teacher, store, device=where)
    if reference is not None and len(reference.head_VE) != reader.vocab_size:
        say(f"no KL: {model} has {reader.vocab_size} logits and {reference.teacher} has {len(reference.head_VE)}")
        reference = None
    return evaluate(reader, store, context=context, reference=reference, title=f"evaluating {model}")
