"""How surprised a model is by given words after given words: negative log-likelihoods of continuations.

Shapes: R rows (positions), V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.data.windows import Window
from limbeck.teachers.score import Passage, Reader, score_logits

Tokens = NDArray[np.int64]


def continuation_nats(reader: Reader, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
    """Nats of all tokens of each continuation together, each read after its context whole."""
    texts = [np.concatenate(row) for row in rows]
    work = [
        Passage(index, Window(start=0, stop=len(text) - 1, first=len(context) - 1))
        for index, (text, (context, _)) in enumerate(zip(texts, rows, strict=True))
    ]
    nats = [0.0] * len(rows)
    for passage, first, logits_RV in score_logits(reader, texts, work):
        target_R = torch.from_numpy(texts[passage.document][first + 1 : first + 1 + len(logits_RV)]).to(logits_RV.device)
        nats[passage.document] += float(torch.nn.functional.cross_entropy(logits_RV.float(), target_R, reduction="sum"))
    return nats
