"""The bytes that every token of a tokenizer stands for.

Two tokenizations of one text are compared by bytes, never by characters: several tokens may share one character. Byte-level BPE
(the alphabet of GPT-2) and BPE with byte fallback (`▁` for a space, `<0xE2>` for a byte, as Gemma's) are read. Tokenizers whose
tokens do not join to the text (WordPiece, lowercasing, a space put before every text) have no such form. A normalisation that
leaves most texts alone (Qwen's NFC) has one: the rare text that it changes is found where texts are compared.

Legend: V ids, including those that no token has.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError

PROBES = (" A  b\n\tCd é1", "A b")
"""The second since some tokenizers put a space before a text that begins with none."""
END_OF_TURN = ("<|im_end|>", "<end_of_turn>", "<turn|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<|end_of_turn|>")
"""What ends a message in the formats of ChatML, Gemma 3 and 4, Llama 3 and 4, harmony and Phi, and Granite-like ones."""

_BY_FINGERPRINT: dict[str, "TokenBytes"] = {}


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """By id. A model's own vocabulary may have more rows than these V, which stand for nothing."""

    content: tuple[bytes, ...]
    """The UTF-8 bytes that the token stands for; b"" where it stands for no text: special tokens, and ids without a token."""
    spelled: tuple[bytes, ...]
    """The same, but special tokens as they are written: inside a plain document they stand for their literal text."""
    start_id: int
    end_id: int
    end_of_turn_id: int | None
    """What ends a message of a chat, by its usual names; None where no token has one of them."""
    special_V: np.ndarray
    """bool."""
    fallback_V: np.ndarray
    """bool: stands for one byte where no other token fits (`<0x41>`), so another token may have the same bytes."""

    @cached_property
    def lengths_V(self) -> np.ndarray:
        """int64: of `content`, in bytes."""
        return np.array([len(one) for one in self.content], dtype=np.int64)

    @cached_property
    def spelled_lengths_V(self) -> np.ndarray:
        """int64: of `spelled`, in bytes."""
        return np.array([len(one) for one in self.spelled], dtype=np.int64)

    def text_bytes(self, tokens: Iterable[int]) -> bytes:
        """What tokens of a plain text spell, without its start and end."""
        return b"".join(map(self.spelled.__getitem__, tokens))


def token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """The bytes of a tokenizer's tokens, read once a process; `DataError` where they do not join to the texts."""
    if tokenizer.fingerprint not in _BY_FINGERPRINT:
        found = _read(tokenizer)
        _require_exact(found, tokenizer)
        _BY_FINGERPRINT[tokenizer.fingerprint] = found
    return _BY_FINGERPRINT[tokenizer.fingerprint]


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (`bytes_to_unicode` of GPT-2), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _read(tokenizer: Tokenizer) -> TokenBytes:
    backend = getattr(tokenizer.backend, "backend_tokenizer", None)
    if backend is None:
        raise _not_exact(tokenizer, "it has no fast form (tokenizer.json)")
    vocabulary: Mapping[str, int] = backend.get_vocab(with_added_tokens=True)
    added: Mapping[int, Any] = backend.get_added_tokens_decoder()
    size = max(tokenizer.size, 1 + max(vocabulary.values()))
    content, fallback_V = [b""] * size, np.zeros(size, dtype=bool)
    spelled, special_V = [b""] * size, np.ones(size, dtype=bool)
    of_text = _reader(tokenizer, kinds=set(_decoder_kinds(tokenizer.backend)))
    for token, index in vocabulary.items():
        bytes_, fallback_V[index] = of_text(token, index in added)
        special = index in {tokenizer.start_id, tokenizer.end_id} or (index in added and added[index].special)
        spelled[index], special_V[index] = bytes_, special
        content[index] = b"" if special else bytes_
    end_of_turn = next((vocabulary[name] for name in END_OF_TURN if name in vocabulary and special_V[vocabulary[name]]), None)
    return TokenBytes(tuple(content), tuple(spelled), tokenizer.start_id, tokenizer.end_id, end_of_turn, special_V, fallback_V)


def _decoder_kinds(backend: Any) -> Iterable[str]:
    import json

    decoder = json.loads(backend.backend_tokenizer.to_str())["decoder"] or {"type": "none"}
    for part in decoder.get("decoders", [decoder]):
        yield part["type"]


def _reader(tokenizer: Tokenizer, *, kinds: set[str]) -> Any:
    """A function of (token, whether it was added to the vocabulary) to (its bytes, whether it is a byte of the fallback)."""
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()

        def byte_level(token: str, added: bool) -> tuple[bytes, bool]:
            if added or not all(character in alphabet for character in token):
                return token.encode("utf-8"), False
            return bytes(alphabet[character] for character in token), False

        return byte_level
    if "ByteFallback" in kinds:
        bytes_ = {f"<0x{byte:02X}>": byte for byte in range(256)}

        def byte_fallback(token: str, added: bool) -> tuple[bytes, bool]:
            if token in bytes_:
                return bytes([bytes_[token]]), True
            return token.replace("▁", " ").encode("utf-8"), False

        return byte_fallback
    raise _not_exact(tokenizer, f"it is neither byte-level nor has it bytes to fall back on (its decoder: {', '.join(kinds)})")


def _require_exact(found: TokenBytes, tokenizer: Tokenizer) -> None:
    for probe, tokens in zip(PROBES, tokenizer.encode(list(PROBES)), strict=True):
        got = found.text_bytes(tokens[1:-1].tolist())
        if got != probe.encode("utf-8"):
            raise _not_exact(tokenizer, f"it reads {probe!r} as {got.decode('utf-8', errors='replace')!r}")


def _not_exact(tokenizer: Tokenizer, reason: str) -> DataError:
    return DataError(
        f"the tokens of {tokenizer.folder} do not join to the bytes of a text: {reason}; to distil across tokenizers both must "
        "be byte-level, or fall back on bytes"
    )
