"""A folder's tokenizer in a GGUF file: byte-level BPE, as OLMo, Qwen, Llama 3, SmolLM and GPT-OSS have it.

How a text is split before merging is not written down in GGUF but named (`tokenizer.ggml.pre`); llama.cpp has the expressions
(`src/llama-vocab.cpp`). The name is found here from the expression in tokenizer.json, so that a tokenizer that splits in a way
without a name is refused and not mistaken for another.
"""

import json
from pathlib import Path
from typing import Any

import gguf as format
from tokenizers import Tokenizer
from transformers import PreTrainedConfig

from limbeck.errors import SpecError

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?|"
_THREE_DIGITS = rf"{_ENDINGS}|{_WORDS}\p{{N}}{{1,3}}{_MARKS}{_SPACES}"
_SPLITS = {
    _THREE_DIGITS: "dbrx",
    rf"{_ENDINGS}|{_WORDS}\p{{N}}{_MARKS}{_SPACES}": "qwen2",
    rf"{_CASED_WORDS}\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}": "gpt-4o",
}
"""The first is cl100k's: 'dbrx' where merges decide alone, 'llama-bpe' where words that are tokens are never split."""


def write_tokenizer(writer: format.GGUFWriter, folder: Path, *, config: PreTrainedConfig) -> None:
    """Add the tokens, as many as the model has, the merges, the special tokens of `config` and the chat template."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SpecError(f"{folder} holds no tokenizer.json: GGUF needs one, with byte-level BPE")
    state = json.loads(path.read_text(encoding="utf-8"))
    pre = _split_name(state, path)
    tokens, kinds = _tokens(state, path, vocab_size=config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in state["model"]["merges"]])
    _write_special(writer, path, config)
    template = _chat_template(folder)
    if template is not None:
        writer.add_chat_template(template)


def _split_name(state: dict[str, Any], path: Path) -> str:
    """How llama.cpp calls the way the tokenizer splits."""
    if state["model"]["type"] != "BPE" or state["model"].get("byte_fallback"):
        raise SpecError(f"{path} is no byte-level BPE: GGUF export knows no other")
    if (state.get("normalizer") or {"type": "NFC"})["type"] != "NFC":  # which llama.cpp leaves to the caller
        raise SpecError(f"{path} normalises texts ({state['normalizer']['type']}), which llama.cpp would not")
    outer = state["pre_tokenizer"] or {"type": "none"}
    steps = outer["pretokenizers"] if outer["type"] == "Sequence" else [outer]
    match steps:
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return "gpt-2"
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False},
        ]:
            return "smollm"
        case [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ] if expression in _SPLITS:
            whole_words_first = expression == _THREE_DIGITS and state["model"].get("ignore_merges")
            return "llama-bpe" if whole_words_first else _SPLITS[expression]
    raise SpecError(f"{path} splits texts in a way that llama.cpp has no name for: {json.dumps(outer)[:200]}")


def _tokens(state: dict[str, Any], path: Path, *, vocab_size: int) -> tuple[list[str], list[format.TokenType]]:
    """In the order of their ids; ids without a token get one that no text gives."""
    by_id = {index: token for token, index in state["model"]["vocab"].items()}
    added = {each["id"]: each for each in state["added_tokens"]}
    by_id |= {index: each["content"] for index, each in added.items()}
    if max(by_id) >= vocab_size:
        raise SpecError(f"{path} has {max(by_id) + 1} tokens and the student knows {vocab_size}: name its own tokenizer")

    def kind(index: int) -> format.TokenType:
        if index not in by_id:
            return format.TokenType.UNUSED
        if index not in added:
            return format.TokenType.NORMAL
        return format.TokenType.CONTROL if added[index]["special"] else format.TokenType.USER_DEFINED

    return [by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)], [kind(index) for index in range(vocab_size)]


def _write_special(writer: format.GGUFWriter, path: Path, config: PreTrainedConfig) -> None:
    first = Tokenizer.from_file(str(path)).encode("a").ids[:1]
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    if end is not None:
        writer.add_eos_token_id(end)
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(first == [config.bos_token_id])


def _chat_template(folder: Path) -> str | None:
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if not settings.is_file():
        return None
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None
