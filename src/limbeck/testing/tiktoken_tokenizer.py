"""An encoding of `tiktoken` as a Hugging Face tokenizer, id for id, with all its special tokens.

For tests and studies of GPT-OSS's o200k_harmony and OLMo's cl100k_base without a download from a hub. transformers has a
converter; this one is here because that one puts special tokens at other ids where the encoding leaves ids out (cl100k_base has
no 100256), takes the possessive `{1,3}+` of newer patterns for a repetition (its engine, Oniguruma, has none, and numerals are
no longer grouped), and needs a file written by a package of its own.

A merge joins two tokens that make a third; where several pairs make it, tiktoken takes the leftmost one in the text, Hugging
Face the one that is listed first. No text has been found on which they differ.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.data.token_bytes import byte_alphabet
from limbeck.data.tokenizers import Tokenizer, load_tokenizer

_POSSESSIVE = re.compile(r"((?:\\p\{\w+\}|\\.|\[[^\]]*\]|[^\\{}\[\]()|])\{\d+(?:,\d*)?\})\+")


def save_tiktoken(encoding: Any, folder: Path, *, end: str = "<|endoftext|>", start: str | None = None) -> Tokenizer:
    """Write a `tiktoken.Encoding` as a tokenizer folder, and load it.

    `end` and `start` are names of its special tokens: what ends a document (default of GPT and OLMo), and what begins one.
    Ids that the encoding leaves out become special tokens `<|reserved_ID|>`. Takes about a second for every 50,000 tokens.
    """
    from transformers import PreTrainedTokenizerFast

    backend = _backend(encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, bos_token=start).save_pretrained(folder)
    return load_tokenizer(str(folder))


def _backend(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]) -> Any:
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    characters = {byte: character for character, byte in byte_alphabet().items()}
    written = {token: token.decode("latin-1").translate(characters) for token in ranks}
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    merges = [(written[left], written[right]) for left, right in _merges(ranks)]
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(in_oniguruma(pattern)), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    names = {index: name for name, index in reversed(list(special.items()))}  # of two names of one id, the first
    ids = range(len(ranks), max(names) + 1)
    backend.add_special_tokens(
        [AddedToken(names.get(one, f"<|reserved_{one}|>"), special=True, normalized=False) for one in ids]
    )
    return backend


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that make a third, by its rank."""
    found = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
        found += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return found


def in_oniguruma(pattern: str) -> str:
    """A pattern of Rust's `fancy-regex` for Oniguruma: a possessive `x{1,3}+` as the atomic group that it means."""
    return _POSSESSIVE.sub(r"(?>\1)", pattern)
