"""Tokenizers of every kind, small enough to make in a moment, that read one text differently."""

from pathlib import Path
from typing import Any

from tiny_world import prose
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from limbeck.data.tokenizers import Tokenizer as LimbeckTokenizer
from limbeck.data.tokenizers import load_tokenizer

GROUPS_OF_THREE = r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ONE_BY_ONE = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def byte_level(
    folder: Path,
    *,
    vocab_size: int,
    pattern: str | None = None,
    normalizer: Any = None,
    special: tuple[str, ...] = (),
    bos: str | None = "<s>",
    eos: str = "</s>",
) -> LimbeckTokenizer:
    """Byte-level BPE over words of `pattern` (by default, GPT-2's), trained on the prose with numbers."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    names = [name for name in dict.fromkeys([bos, eos, *special]) if name is not None]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = " ".join(str(place * 7919) for place in range(400))
    tokenizer.train_from_iterator(
        [*(prose(seed, 400) for seed in range(4)), numbers, "the 🎉 é 漢字 of \r\n law " * 20], trainer
    )
    backend = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    if special:
        backend.add_special_tokens({"additional_special_tokens": list(special)})
    backend.save_pretrained(folder)
    return load_tokenizer(str(folder))


def byte_fallback(folder: Path) -> LimbeckTokenizer:
    """A few words with `▁` for spaces, and bytes for what they do not cover, as Gemma's."""
    words = ["th", "the", "▁the", "▁▁", "▁p", "eo", "▁peo", "▁law", "la", "law", "ll", "of", "▁of", "▁12"]
    letters = [*"▁abcdefghijklmnopqrstuvwxyzTHE.,:<>/|0123456789", "é", "\n"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *words]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁"), ("▁", "p"), ("e", "o"), ("▁p", "eo"), ("l", "a"), ("la", "w")]
    merges += [("▁", "law"), ("l", "l"), ("o", "f"), ("▁", "of")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    backend.save_pretrained(folder)
    return load_tokenizer(str(folder))


def word_piece(folder: Path) -> LimbeckTokenizer:
    """BERT's kind: lower case, and `##` for what goes on."""
    words = ["[UNK]", "[CLS]", "[SEP]", "the", "law", "##s", "a", "b"]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return load_tokenizer(str(folder))
