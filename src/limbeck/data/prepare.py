"""The token stores of a recipe's texts: read, tokenised and kept in the user cache, under a key of all that they depend on."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from limbeck.data import texts as text_sources
from limbeck.data.chat_template import template_digest, with_chat_template
from limbeck.data.chat_tokens import Left, read_tokens
from limbeck.data.chats import Chat, read_chats
from limbeck.data.texts import Document
from limbeck.data.token_store import Encoded, TokenStore, joined, open_token_store, write_token_store
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.paths import cache_folder
from limbeck.progress import say
from limbeck.spec.data import ChatTexts, Data, MixedTexts, PlainTexts, Texts, TrainingTexts

FORMAT = 1
CHAT_FORMAT = 3
"""Of what is read from chats: raised when they would be read otherwise."""
ENCODE_AT_ONCE = 256
_USUAL_ROLES = ("system", "developer", "user", "assistant", "tool")
_USUAL_CHANNELS = ("analysis", "commentary", "final")


def prepare(data: Data, tokenizer: Tokenizer) -> tuple[TokenStore, TokenStore]:
    """The (training, held-out) token stores of a recipe, made on first use and kept in the user cache.

    A held-out document never trains: it is left out of the training documents by its id. `DataError` where `loss_on` names what
    no chat has.
    """
    tokenizer = with_chat_template(tokenizer, data.chat_template)
    heldout = prepare_texts(data.heldout, tokenizer, title="held-out", loss_on=data.loss_on)
    train = prepare_training(data.train, tokenizer, exclude=heldout, loss_on=data.loss_on)
    _check_loss_on(data.loss_on or (), [train, heldout])
    return train, heldout


def _check_loss_on(names: Sequence[str], stores: Sequence[TokenStore]) -> None:
    """Refuse a name that has no effect because it is misspelt; the usual ones may be those of another stage's chats."""
    held = sorted({name for store in stores for found in store.chats for name in found["bodies"]})
    roles = {name.partition(".")[0] for name in held}
    for name in names if held else ():
        role, _, channel = name.partition(".")
        is_usual = role in _USUAL_ROLES and channel in ("", *_USUAL_CHANNELS)
        if not is_usual and name not in held and name not in roles:
            raise DataError(f"data.loss_on names {name!r}, which no chat has: they have {', '.join(held)}; write one of these")


def prepare_training(
    texts: TrainingTexts, tokenizer: Tokenizer, *, exclude: TokenStore | None, loss_on: Sequence[str] | None
) -> TokenStore:
    """The token store of training texts; of a mixture the joined one, its parts in the order of the recipe."""
    if not isinstance(texts, MixedTexts):
        return prepare_texts(texts, tokenizer, title="training", exclude=exclude, loss_on=loss_on)
    sources = {f"training ({name})": part.texts for name, part in texts.parts.items()}
    return joined(
        [prepare_texts(each, tokenizer, title=title, exclude=exclude, loss_on=loss_on) for title, each in sources.items()]
    )


def prepare_texts(
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    title: str,
    exclude: TokenStore | None = None,
    loss_on: Sequence[str] | None = None,
) -> TokenStore:
    """The token store of some texts less the documents of `exclude`, made on first use and kept in the user cache.

    Of chats, tokens count that `loss_on` names; what is left out of them is said aloud.
    """
    about = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "texts": texts.model_dump(mode="json"),
        "source": text_sources.fingerprint(texts),
        "excluded": exclude.documents_digest if exclude is not None else None,
    }
    if isinstance(texts, ChatTexts):
        about |= {"template": template_digest(tokenizer), "loss_on": loss_on and sorted(loss_on), "chat_format": CHAT_FORMAT}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode("utf-8")).hexdigest()[:20]
    path = cache_folder() / "tokens" / key
    if not path.is_dir():
        forbidden = frozenset(exclude.ids) if exclude is not None else frozenset()
        if isinstance(texts, ChatTexts):
            documents, learnt = _of_chats(texts, tokenizer, forbidden=forbidden, loss_on=loss_on)
        else:
            documents, learnt = _of_texts(texts, tokenizer, forbidden=forbidden), dict
        write_token_store(path, documents, about=about, learnt=learnt, max_tokens=texts.sample_tokens, title=title)
    store = open_token_store(path)
    _say_what_is_left_out(store, title=title)
    return store


def _of_texts(texts: PlainTexts, tokenizer: Tokenizer, *, forbidden: frozenset[str]) -> Iterator[Encoded]:
    documents: Iterable[Document] = (found for found in text_sources.read_documents(texts) if found.id not in forbidden)
    if texts.sample_tokens is not None:
        documents = sorted(documents, key=lambda found: found.id)
    remaining = iter(documents)
    while group := list(islice(remaining, ENCODE_AT_ONCE)):
        for found, tokens in zip(group, tokenizer.encode([found.text for found in group]), strict=True):
            yield Encoded(found.id, found.num_bytes, tokens)


def _of_chats(
    texts: ChatTexts, tokenizer: Tokenizer, *, forbidden: frozenset[str], loss_on: Sequence[str] | None
) -> tuple[Iterator[Encoded], Callable[[], dict[str, Any]]]:
    """The chats, and what is known of all of them once they are read."""
    chats: Iterable[Chat] = (found for found in read_chats(texts) if found.id not in forbidden)
    if texts.sample_tokens is not None:
        chats = sorted(chats, key=lambda found: found.id)
    left = Left()
    found = read_tokens(chats, tokenizer, texts=texts, loss_on=loss_on, left=left)
    encoded = (Encoded(each.chat.id, each.num_bytes, each.tokens_T, each.counted_T, each.bodies_T) for each in found)
    return encoded, lambda: {"chats": left.statistics()}


def _say_what_is_left_out(store: TokenStore, *, title: str) -> None:
    found = store.about.get("chats", {})
    for reason, number in found.get("left_out", {}).items():
        say(f"{title} chats: {number:,} left out, since {reason} ({len(store):,} kept)")
    if found.get("traces_unsaid"):
        say(f"{title} chats: the chat template leaves out the traces of {found['traces_unsaid']:,} of {len(store):,}")
