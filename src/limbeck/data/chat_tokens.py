"""Chats in tokens: which body each token is of, which tokens are learnt, how long traces are, and what is left out.

A rendered chat is tokenised whole, as it is at use, between a start and an end token where the template has not written them.
A token is of the body that any of its characters is of. What counts is asked by role and channel (`loss_on`): the bodies'
tokens, the special token that ends each, and of an assistant what it has to write to get there: all since the template's
invitation to answer, or since its own trace. So a student learns to open its channels and to stop. The rest of the template
does not count.

Legend: T tokens of a chat.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.chat_template import invitation
from limbeck.data.chats import ASSISTANT, NO_EFFORT, TRACE, Body, Chat, RenderedChat, UnreadableChat, render
from limbeck.data.tokenizers import Tokenizer
from limbeck.errors import DataError
from limbeck.spec.data import ChatTexts

ENCODE_AT_ONCE = 256


@dataclass(frozen=True)
class ChatTokens:
    """A chat in tokens."""

    chat: Chat
    tokens_T: NDArray[np.uint32]
    bodies_T: NDArray[np.int32]
    """The number of the body that each token is of; -1 for the template's."""
    counted_T: NDArray[np.bool_]
    """Whether it is learnt; the first token never is, since nothing predicts it."""
    num_bytes: int
    """UTF-8 bytes of the bodies that count."""
    trace_tokens: int


@dataclass
class Left:
    """What became of the chats that were read: filled while they are."""

    out: Counter[str] = field(default_factory=Counter)
    """By reason."""
    unsaid: int = 0
    """Kept chats of which the template leaves out the last trace."""
    traces: dict[str, list[int]] = field(default_factory=dict)
    """By effort, the tokens of the traces of kept chats."""
    bodies: Counter[str] = field(default_factory=Counter)
    """By `role` or `role.channel`, of all chats that can be read."""

    def statistics(self) -> dict[str, Any]:
        """Of traces by effort: chats, and mean, median, 90th percentile and maximum of their tokens; and the rest as it is."""
        traces = {}
        for effort, lengths in sorted(self.traces.items()):
            p50, p90 = np.quantile(lengths, [0.5, 0.9])
            traces[effort] = {
                "chats": len(lengths),
                "mean": float(np.mean(lengths)),
                "p50": float(p50),
                "p90": float(p90),
                "max": int(max(lengths)),
            }
        return {
            "traces": traces,
            "left_out": dict(self.out),
            "traces_unsaid": self.unsaid,
            "bodies": dict(sorted(self.bodies.items())),
        }


def counts(body: Body, loss_on: Sequence[str] | None) -> bool:
    """Whether a body is one of those that `role` or `role.channel` name; None: every one is."""
    return loss_on is None or body.role in loss_on or body.name in loss_on


def read_tokens(
    chats: Iterable[Chat], tokenizer: Tokenizer, *, texts: ChatTexts | None, loss_on: Sequence[str] | None, left: Left
) -> Iterator[ChatTokens]:
    """The chats in tokens less those that `texts` caps, that cannot be read, or hold nothing to learn, counted in `left`."""
    special = frozenset(int(number) for number, token in tokenizer.backend.added_tokens_decoder.items() if token.special)
    invited, remaining = invitation(tokenizer), iter(chats)
    while group := list(islice(remaining, ENCODE_AT_ONCE)):
        rendered: list[RenderedChat] = []
        for chat in group:
            try:
                rendered.append(render(chat, tokenizer))
            except UnreadableChat:
                left.out["the template changes what they say"] += 1
        for found in _encoded(rendered, tokenizer, special=special, invited=invited, loss_on=loss_on):
            left.bodies.update(body.name for body in found.chat.bodies)
            reason = _reason_against(found, special, texts)
            if reason is not None:
                left.out[reason] += 1
                continue
            left.unsaid += _says_no_trace(found)
            left.traces.setdefault(found.chat.effort or NO_EFFORT, []).append(found.trace_tokens)
            yield found


def _reason_against(found: ChatTokens, special: frozenset[int], texts: ChatTexts | None) -> str | None:
    """Why a chat is left out, for people; None where it is not."""
    if np.isin(found.tokens_T[found.bodies_T >= 0], list(special)).any():
        return "they spell out special tokens of the tokenizer"
    if not (found.counted_T & (found.bodies_T >= 0)).any():
        return "nothing in them is learnt (data.loss_on)"
    cap = None if texts is None else texts.trace_caps.get(found.chat.effort or NO_EFFORT)
    is_longer = cap is not None and found.trace_tokens > cap
    if texts is not None and texts.longer == "only" and not is_longer:
        return "their traces are within the caps (longer: only)"
    if texts is not None and texts.longer == "drop" and is_longer:
        return f"their traces are longer than trace_caps.{found.chat.effort or NO_EFFORT}={cap}"
    return None


def _says_no_trace(found: ChatTokens) -> bool:
    traces = [body.number for body in found.chat.bodies if body.channel == TRACE and body.text]
    return bool(traces) and traces[-1] not in found.bodies_T


def _encoded(
    rendered: Sequence[RenderedChat],
    tokenizer: Tokenizer,
    *,
    special: frozenset[int],
    invited: str,
    loss_on: Sequence[str] | None,
) -> Iterator[ChatTokens]:
    if not getattr(tokenizer.backend, "is_fast", False):
        raise DataError(
            f"the tokenizer of {tokenizer.folder} cannot say which characters a token is of: chats need a fast one, with a "
            "tokenizer.json"
        )
    if not rendered:
        return
    encoded = tokenizer.backend(
        [each.text for each in rendered],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    for each, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids_T, at_T2 = np.array(ids, dtype=np.uint32), np.array(offsets, dtype=np.int64).reshape(-1, 2)
        tokens_T, at_T2 = _bounded(ids_T, _with_spaces(at_T2, np.isin(ids_T, list(special))), tokenizer)
        bodies_T = body_of_tokens(each, at_T2)
        learnt = [span.body for span in each.spans if counts(span.body, loss_on)]
        named = {body.number for body in learnt}
        num_bytes = sum(len(each.text[s.start : s.stop].encode("utf-8")) for s in each.spans if s.body.number in named)
        yield ChatTokens(
            chat=each.chat,
            tokens_T=tokens_T,
            bodies_T=bodies_T,
            counted_T=_counted(each, at_T2, bodies_T, np.isin(tokens_T, list(special)), invited=invited, loss_on=loss_on),
            num_bytes=num_bytes,
            trace_tokens=int(np.isin(bodies_T, [body.number for body in each.chat.bodies if body.channel == TRACE]).sum()),
        )


def _with_spaces(at_T2: NDArray[np.int64], special_T: NDArray[np.bool_]) -> NDArray[np.int64]:
    """With the spaces that many tokenizers leave out of offsets (`trim_offsets`): those before a token are its own."""
    if not len(at_T2):
        return at_T2
    behind_T = np.concatenate([[0], np.maximum.accumulate(at_T2[:, 1])[:-1]])
    starts_T = np.where(special_T, at_T2[:, 0], np.minimum(at_T2[:, 0], behind_T))
    return np.stack([starts_T, at_T2[:, 1]], axis=1)


def _bounded(
    ids_T: NDArray[np.uint32], at_T2: NDArray[np.int64], tokenizer: Tokenizer
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """With a start and an end token unless they are there; white space that a template writes after its last one is dropped."""
    ends = np.flatnonzero(ids_T == tokenizer.end_id)
    if len(ends) and not tokenizer.backend.decode(ids_T[ends[-1] + 1 :].tolist(), clean_up_tokenization_spaces=False).strip():
        ids_T, at_T2 = ids_T[: ends[-1] + 1], at_T2[: ends[-1] + 1]
    behind = int(at_T2[-1, 1]) if len(at_T2) else 0
    if not len(ids_T) or ids_T[0] != tokenizer.start_id:
        ids_T, at_T2 = np.insert(ids_T, 0, tokenizer.start_id), np.insert(at_T2, 0, [0, 0], axis=0)
    if len(ids_T) == 1 or ids_T[-1] != tokenizer.end_id:
        ids_T, at_T2 = np.append(ids_T, np.uint32(tokenizer.end_id)), np.append(at_T2, [[behind, behind]], axis=0)
    return ids_T, at_T2


def body_of_tokens(rendered: RenderedChat, at_T2: NDArray[np.int64]) -> NDArray[np.int32]:
    """By the characters [from, to) of each token: the first body that it has a character of; -1 where there is none.

    Inside a character of several bytes, tokens have the whole character, which lies in one body.
    """
    bodies_T = np.full(len(at_T2), -1, dtype=np.int32)
    if not rendered.spans:
        return bodies_T
    starts, stops = (np.array([getattr(span, name) for span in rendered.spans]) for name in ("start", "stop"))
    numbers = np.array([span.body.number for span in rendered.spans])
    place_T = np.searchsorted(stops, at_T2[:, 0], side="right")  # the first body that ends after the token begins
    inside_T = place_T < len(stops)
    inside_T[inside_T] = starts[place_T[inside_T]] < at_T2[inside_T, 1]
    inside_T &= at_T2[:, 1] > at_T2[:, 0]
    bodies_T[inside_T] = numbers[place_T[inside_T]]
    return bodies_T


def _counted(
    rendered: RenderedChat,
    at_T2: NDArray[np.int64],
    bodies_T: NDArray[np.int32],
    special_T: NDArray[np.bool_],
    *,
    invited: str,
    loss_on: Sequence[str] | None,
) -> NDArray[np.bool_]:
    counted_T = np.full(len(bodies_T), loss_on is None)
    opens = {} if loss_on is None else _openings(rendered, invited)
    for span in rendered.spans if loss_on is not None else ():
        of_body_M = np.flatnonzero(bodies_T == span.body.number)
        if not counts(span.body, loss_on) or not len(of_body_M):
            continue
        counted_T[of_body_M] = True
        first, behind = int(of_body_M[0]), int(of_body_M[-1]) + 1
        if span.body.number in opens:
            before_M = np.flatnonzero((at_T2[:first, 0] >= opens[span.body.number]) & (bodies_T[:first] < 0))
            ends_another_M = special_T[before_M] & (bodies_T[before_M - 1] >= 0)
            counted_T[before_M[~ends_another_M]] = True
        counted_T[behind : behind + 1] |= special_T[behind : behind + 1]
    counted_T[0] = False
    return counted_T


def _openings(rendered: RenderedChat, invited: str) -> Mapping[int, int]:
    """Of assistants' bodies by number: from which character on the assistant writes by itself to get there."""
    found: dict[int, int] = {}
    before = None
    for span in rendered.spans:
        begins = 0 if before is None else before.stop
        if span.body.role == ASSISTANT and before is not None and before.body.message == span.body.message:
            found[span.body.number] = begins
        elif span.body.role == ASSISTANT and invited:
            at = rendered.text.rfind(invited, begins, span.start)
            if at >= 0:
                found[span.body.number] = at + len(invited)
        before = span
    return found
