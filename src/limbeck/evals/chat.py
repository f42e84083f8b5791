"""How a model is spoken to and how it says that it is done: its chat template, and the tokens that it stops at."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError, first_line
from limbeck.evals.subject import EvalModel

Messages = Sequence[Mapping[str, str]]
ANSWER = "answer"


def require_template(tokenizer: Tokenizer, *, remedy: str) -> None:
    """`DataError` where the tokenizer has no chat template."""
    if not getattr(tokenizer.backend, "chat_template", None):
        raise DataError(f"the tokenizer of {tokenizer.folder} has no chat template: {remedy}")


def chat_text(tokenizer: Tokenizer, messages: Messages, *, answers: bool, **told: Any) -> str:
    """A chat by the tokenizer's own template; with `answers`, up to where the assistant's answer begins.

    What else the template is `told` are variables of its own, such as `reasoning_effort`.
    """
    try:
        text: str = tokenizer.backend.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=answers, **told
        )
    except Exception as error:  # a template raises what it likes
        raise DataError(
            f"the chat template of {tokenizer.folder} refuses {[m.get('role') for m in messages]}: {first_line(error)}"
        ) from error
    return text


def plain_tokens(tokenizer: Tokenizer, text: str) -> NDArray[np.int64]:
    """The ids of a text as it stands."""
    return np.asarray(tokenizer.backend(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)


def document_tokens(tokenizer: Tokenizer, text: str) -> NDArray[np.int64]:
    """The ids of a document's beginning: with the start token, without the end."""
    return np.concatenate([[tokenizer.start_id], plain_tokens(tokenizer, text)])


def stop_ids(model: EvalModel) -> tuple[int, ...]:
    """The tokens that end what the model writes, ascending.

    They are those of its generation_config, its tokenizer's end-of-sequence token, and the special token that its chat template
    puts after an assistant's answer.
    """
    return stops_of(model.reader.model, model.tokenizer, vocab_size=model.reader.vocab_size)


def stops_of(model: Any, tokenizer: Tokenizer, *, vocab_size: int) -> tuple[int, ...]:
    """The same of any model of transformers with a tokenizer."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.end_id, *(named if isinstance(named, list | tuple) else [named]), end_of_turn(tokenizer)}
    return tuple(sorted(int(each) for each in found if each is not None and each < vocab_size))


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The special token after an assistant's answer in the chat template; None where there is none."""
    if not getattr(tokenizer.backend, "chat_template", None):
        return None
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER}]
    after = plain_tokens(tokenizer, chat_text(tokenizer, messages, answers=False).rsplit(ANSWER, 1)[-1])
    special: dict[int, Any] = tokenizer.backend.added_tokens_decoder
    return int(after[0]) if len(after) and int(after[0]) in special and special[int(after[0])].special else None
