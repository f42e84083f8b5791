"""Chat templates: a tokenizer's own, one from a file, or GPT-OSS's format, which Limbeck brings along as `harmony`.

`harmony.jinja` follows the format of openai/harmony (docs/format.md): a system message with the identity line, the effort and
the channels; what users call a system message goes to a `developer` message; of an assistant's turn the trace is on channel
`analysis` and the answer on `final`. A trace is kept until the next message of the user. The last answer ends in `<|return|>`,
as supervised targets do; earlier ones in `<|end|>`. The current date is left out: texts would change from day to day.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError, first_line

HARMONY = "harmony"
_HARMONY_TOKENS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")


def with_chat_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    """The tokenizer with another template (`harmony`, or a Jinja file), which is saved with it; with its own for None.

    `DataError` where the file cannot be read, or the tokenizer lacks harmony's special tokens.
    """
    if template is None:
        return tokenizer
    text = _harmony(tokenizer) if template == HARMONY else _read(Path(template))
    backend = copy.copy(tokenizer.backend)
    backend.chat_template = text
    return replace(tokenizer, backend=backend)


def _harmony(tokenizer: Tokenizer) -> str:
    lacking = [name for name in _HARMONY_TOKENS if name not in tokenizer.backend.get_added_vocab()]
    if lacking:
        raise DataError(
            f"data.chat_template=harmony: the tokenizer of {tokenizer.folder} has no token {lacking[0]}: take one of "
            "GPT-OSS, or name a Jinja file with a template of your tokenizer's"
        )
    return resources.files("limbeck.data").joinpath("harmony.jinja").read_text(encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = first_line(error)
        raise DataError(f"data.chat_template={path} cannot be read ({reason}): name a Jinja file, or harmony") from error


def template_digest(tokenizer: Tokenizer) -> str:
    """One name for the template; `DataError` where there is none."""
    return hashlib.sha256(_template(tokenizer).encode("utf-8")).hexdigest()[:32]


def _template(tokenizer: Tokenizer) -> str:
    template = getattr(tokenizer.backend, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise DataError(
            f"the tokenizer of {tokenizer.folder} has no chat template: set data.chat_template to a Jinja file, or to harmony"
        )
    return str(template)


def render_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    *,
    effort: str | None,
    source: str,
    answers: bool = False,
) -> str:
    """What the tokenizer's template makes of messages; with `answers`, and where the assistant's next answer begins."""
    _template(tokenizer)
    told = {} if effort is None else {"reasoning_effort": effort}
    try:
        text: str = tokenizer.backend.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=answers, **told
        )
    except Exception as error:  # a template raises what it likes
        roles = ", ".join(message["role"] for message in messages)
        refused = f"{source}: the chat template of {tokenizer.folder} refuses it ({roles})"
        raise DataError(f"{refused}: {first_line(error)}") from error
    return text


def invitation(tokenizer: Tokenizer) -> str:
    """What the template writes to let the assistant answer; empty where it has nothing for that."""
    question = [{"role": "user", "content": "question"}]
    try:
        before, after = (render_messages(tokenizer, question, effort=None, source="", answers=asked) for asked in (False, True))
    except DataError:
        return ""
    return after[len(before) :] if after.startswith(before) else ""
