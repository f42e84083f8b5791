"""The stream of sequences that a recipe's data asks for, over its training documents."""

import numpy as np

from limbeck.data.mixture import MixedStream
from limbeck.data.packing import SequenceStream, TokenStream
from limbeck.data.token_store import TokenStore
from limbeck.data.whole import WholeStream
from limbeck.spec.data import Data, MixedTexts


def open_stream(data: Data, train: TokenStore, *, seed: int) -> SequenceStream:
    """By packing, and by the shares of a mixture; `train` is what `prepare` made of `data`."""
    if not isinstance(data.train, MixedTexts):
        return _stream(data, train.lengths, seed=seed)
    return MixedStream(
        [_stream(data, part.lengths, seed=seed) for part in train.parts],
        shares=[part.share for part in data.train.parts.values()],
        documents_of_parts=train.documents_of_parts,
    )


def _stream(data: Data, lengths: np.ndarray, *, seed: int) -> SequenceStream:
    if data.packing == "whole":
        return WholeStream(lengths, sequence_length=data.sequence_length, seed=seed)
    return TokenStream(lengths, sequence_length=data.sequence_length, seed=seed)


def counted_share(stream: SequenceStream, train: TokenStore) -> float:
    """Of the positions that hold something, those that have a loss: the mean over what a stream reads."""
    if not train.has_masks:
        return 1.0
    if isinstance(stream, MixedStream):
        filled = [share * (1 - part.padding_share) for share, part in zip(stream.shares, stream.parts, strict=True)]
        each = [counted_share(part, of) for part, of in zip(stream.parts, train.parts, strict=True)]
        return float(np.average(each, weights=filled))
    read = stream.documents()
    return float(train.targets_per_document[read].sum() / (train.lengths[read] - 1).sum())
