"""How well each position of a document is predicted: mean nats per token in buckets of positions that double in size.

A text token's position is how many of its document's text tokens come before it, all of which the model sees: only the first
`window` tokens of a document are read, at once, alone. So a model that cannot use long contexts shows where it begins to fail.
Positions beyond the longest context that a model was made for are read all the same where they are rotations, as in the
positions of Llama, OLMo and every student; that is what stretching is held against.

In nats per token, not bits per byte: which bytes a bucket covers depends on the tokenizer, so models side by side share one.
Intervals are over documents; the difference to the first model is resampled as a pair (`limbeck.report.statistics`). A bucket
holds the documents that reach it, which may be others, and fewer, than those of the bucket before.

Legend: R rows, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.compute import pick_device
from limbeck.data.prepare import prepare_texts
from limbeck.data.token_store import TokenStore
from limbeck.data.tokenizers import load_tokenizer
from limbeck.data.windows import Window
from limbeck.errors import LimbeckError
from limbeck.progress import progress
from limbeck.report.statistics import Estimate, ratio_estimate
from limbeck.spec.data import Texts
from limbeck.spec.teacher import Context, HuggingFaceTeacher
from limbeck.teachers.files import TeacherFiles, read_config
from limbeck.teachers.huggingface import load_teacher
from limbeck.teachers.score import Passage, Reader, score_logits

FIRST_STOP = 64
"""The first bucket is positions 0 to 63; every later one ends at twice that of the one before."""
_ROTATED = ("rope_theta", "rope_parameters", "rope_scaling")
Nats = list[NDArray[np.float64]]
"""For each document, the nats of its text tokens up to the window."""


@dataclass(frozen=True)
class Bucket:
    """Text tokens at positions [first, stop) of their documents, and how one model predicts them."""

    first: int
    stop: int
    tokens: int
    documents: int
    nats: Estimate
    """Per token."""
    difference: Estimate | None
    """To the first model's, on the same tokens; None for that itself."""


@dataclass(frozen=True)
class ByPosition:
    """Models side by side."""

    window: int
    documents: int
    models: dict[str, tuple[Bucket, ...]]
    longest: dict[str, int | None]
    """Of each model: the longest context that it says it was made for."""


def evaluate_by_position(models: Mapping[str, str], *, texts: Texts, window: int, device: str = "auto") -> ByPosition:
    """Measure models (name: folder or hub id) on the first `window` tokens of every document.

    `LimbeckError` where their tokenizers differ, or one cannot read so far.
    """
    tokenizers = {name: load_tokenizer(model) for name, model in models.items()}
    first = next(iter(models))
    for name, tokenizer in tokenizers.items():
        if tokenizer.fingerprint != tokenizers[first].fingerprint:
            raise LimbeckError(f"{name} has another tokenizer than {first}: positions of their tokens cannot be compared")
    store = prepare_texts(texts, tokenizers[first], title="held-out")
    nats: dict[str, Nats] = {}
    for name, model in models.items():
        reader = load_teacher(_as_teacher(model, window=window), device=pick_device(device))
        nats[name] = nats_by_position(reader, store, window=window, title=name)
    longest = {name: _config(model).get("max_position_embeddings") for name, model in models.items()}
    compared = {name: buckets(found, beside=None if name == first else nats[first]) for name, found in nats.items()}
    return ByPosition(window, len(store), compared, longest)


@torch.no_grad()
def nats_by_position(reader: Reader, store: TokenStore, *, window: int, title: str) -> Nats:
    """The nats of every text token that the first `window` tokens of its document predict, in order; float64.

    Of a chat those that bits per byte does not measure are nan.
    """
    documents = [store.document(index) for index in range(len(store))]
    # The last token of a document predicts nothing, and the one before it the end, which is no text.
    read = [min(window, len(document) - 2) for document in documents]
    work = [Passage(index, Window(0, 0, length)) for index, length in enumerate(read) if length > 0]
    found = [np.zeros(max(length, 0)) for length in read]
    with progress(f"evaluating {title} by position", total=sum(map(len, found))) as advance:
        for passage, first, logits_RV in score_logits(reader, documents, work):
            targets = documents[passage.document][first + 1 : first + 1 + len(logits_RV)].astype(np.int64)
            log_probs_RV = logits_RV.float().log_softmax(-1)
            ids_R1 = torch.from_numpy(targets)[:, None].to(log_probs_RV.device)
            found[passage.document][first : first + len(targets)] = -log_probs_RV.gather(1, ids_R1)[:, 0].double().cpu().numpy()
            advance(len(targets))
    for index, nats in enumerate(found):
        if not np.isfinite(nats).all():
            raise LimbeckError(f"{title}: the loss on held-out document {store.ids[index]} is not finite")
        nats[~store.measured(index)[1 : 1 + len(nats)]] = np.nan
    return found


def buckets(nats: Nats, *, beside: Nats | None = None) -> tuple[Bucket, ...]:
    """The buckets that any document reaches, with differences to the nats of another model on the same documents."""
    longest = max(map(len, nats), default=0)
    edges = [0, FIRST_STOP]
    while edges[-1] < longest:
        edges.append(2 * edges[-1])
    return tuple(_bucket(nats, beside, first=first, stop=stop) for first, stop in zip(edges, edges[1:], strict=False))


def _bucket(nats: Nats, beside: Nats | None, *, first: int, stop: int) -> Bucket:
    inside = [index for index, found in enumerate(nats) if not np.isnan(found[first:stop]).all()]
    counts_N = np.array([(~np.isnan(nats[index][first:stop])).sum() for index in inside], dtype=np.float64)
    sums_N = _sums(nats, inside, first, stop)
    difference = None if beside is None else ratio_estimate(sums_N - _sums(beside, inside, first, stop), counts_N)
    return Bucket(first, stop, int(counts_N.sum()), len(inside), ratio_estimate(sums_N, counts_N), difference)


def _sums(nats: Nats, documents: Sequence[int], first: int, stop: int) -> NDArray[np.float64]:
    return np.array([np.nansum(nats[index][first:stop]) for index in documents])


def _as_teacher(model: str, *, window: int) -> HuggingFaceTeacher:
    """How the model is opened: a student in float32, as it was saved.

    Where positions are rotations it is asked for no more than it was made for, so that it is not refused: it can read on.
    """
    config = _config(model)
    longest = config.get("max_position_embeddings")
    rotates = config.get("model_type") == "limbeck" or any(config.get(key) for key in _ROTATED)
    return HuggingFaceTeacher(
        model=model,
        dtype="float32" if "student" in config or "limbeck_student" in config else "auto",
        context=Context(window=min(window, longest) if longest is not None and rotates else window, overlap=0),
    )


def _config(model: str) -> dict[str, Any]:
    """Empty where it is not on this machine."""
    return read_config(TeacherFiles(model, model)) or {}
