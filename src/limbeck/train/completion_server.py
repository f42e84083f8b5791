"""Rollouts from a server that completes prompts of token ids, as vLLM's `/v1/completions` does.

Ids go in and ids come out, since text that is read again need not give the tokens that were drawn: a server that returns none
(`token_ids` of each choice, with `return_token_ids`; or tokens named `token_id:N`, with `return_tokens_as_token_ids`) is
refused. A request undoes what servers add by themselves from a model's generation_config: top-k, top-p, penalties. It has no
seed: vLLM would draw alike after every prompt of a request, and copies would be all that a group holds.

The student's weights reach it as a folder, which the server is told to load where `refresh_url` says how.
"""

import http.client
import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, first_line
from limbeck.evals.generate import Prompt
from limbeck.spec.on_policy import ServerEngine
from limbeck.train.rollouts import Continuation, ended

WHOLE_DISTRIBUTION = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


class ServerError(LimbeckError):
    """A server of completions cannot be reached, or does not answer what was asked."""


class ServerSampler:
    """A client of one server."""

    def __init__(
        self,
        spec: ServerEngine,
        *,
        stops: Sequence[int],
        vocab_size: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        self.spec, self.stops, self.vocab_size, self.max_new_tokens = spec, tuple(stops), vocab_size, max_new_tokens
        self.how = {**WHOLE_DISTRIBUTION, "temperature": temperature, "top_p": top_p}
        self._refreshed_at: int | None = None

    def refresh(self, step: int, write: Callable[[], Path]) -> None:
        """Let the server load the student: before the first step of this process, and then after every `refresh_steps`."""
        last, url = self._refreshed_at, self.spec.refresh_url
        if url is not None and (last is None or step - last >= self.spec.refresh_steps):
            self._post(url, {"model": self.spec.model, "path": str(write().resolve())})
            self._refreshed_at = step

    def draw(self, prompts: Sequence[Prompt], *, key: str) -> list[Continuation]:
        """A continuation of each prompt, in their order, by the weights that the server has; it need not repeat itself."""
        return self._asked(prompts, max_tokens=self.max_new_tokens)

    def check(self, prompt: Prompt) -> None:
        """`ServerError` where a single token of a continuation is not to be had."""
        self._asked([prompt], max_tokens=1)

    def _asked(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Continuation]:
        asked = {
            "model": self.spec.model,
            "prompt": [prompt.tokens.tolist() for prompt in prompts],
            "max_tokens": max_tokens,
            "logprobs": 1,
            "stop_token_ids": list(self.stops),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **self.how,
        }
        url = f"{self.spec.url.rstrip('/')}/completions"
        answer = self._post(url, asked)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            found = [(_ids(choice), _log_probs(choice), choice["finish_reason"]) for choice in choices]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ServerError(
                f"{url} does not say which tokens it drew, and with what log-probs ({type(error).__name__}: {error}): use a "
                "server that knows return_token_ids or return_tokens_as_token_ids, as vLLM does"
            ) from error
        if len(found) != len(prompts):
            raise ServerError(f"{url} was asked for {len(prompts)} completions and gave {len(found)}")
        return [self._continuation(*each, url=url, max_tokens=max_tokens) for each in found]

    def _continuation(self, ids: list[int], log_probs: list[float], reason: str, *, url: str, max_tokens: int) -> Continuation:
        drawn = ended(ids, log_probs, stops=self.stops) if len(ids) == len(log_probs) else None
        wrong = (
            (drawn is None or not ids, f"{len(ids)} tokens with {len(log_probs)} log-probs"),
            (any(each >= self.vocab_size for each in ids), f"token {max(ids, default=0)} of a vocabulary of {self.vocab_size}"),
            (len(ids) > max_tokens, f"{len(ids)} tokens where {max_tokens} were asked for"),
            (drawn is not None and reason == "stop" and not drawn.stopped, "an end without one of the model's stop tokens"),
        )
        for is_wrong, what in wrong:
            if is_wrong:
                raise ServerError(f"{url} gave {what}: let it serve the same model with the same tokenizer")
        assert drawn is not None
        return drawn

    def _post(self, url: str, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            request = urllib.request.Request(url, json.dumps(asked).encode(), self._headers(url))
            with _STRAIGHT.open(request, timeout=self.spec.timeout_seconds) as response:
                answer = json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise ServerError(f"{url} refuses ({error.code}): {_said(error) or error.reason}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:  # timeouts and refused connections among the first
            raise ServerError(
                f"{url} does not answer ({first_line(error)}): start the server, or correct engine.url"
            ) from error
        return answer if isinstance(answer, dict) else {}

    def _headers(self, url: str) -> dict[str, str]:
        """The key goes where completions are asked for, and nowhere else."""
        variable = self.spec.api_key_variable
        key = os.environ.get(variable, "").strip() if variable is not None and _origin(url) == _origin(self.spec.url) else ""
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would take the key along to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """Refused, so that the answer is an error of its code."""


_STRAIGHT = urllib.request.build_opener(_NoRedirect)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    found = urllib.parse.urlsplit(url)
    return found.scheme, found.hostname, found.port or {"http": 80, "https": 443}.get(found.scheme)


def _said(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        return f"it sends on to {error.headers.get('Location')}, where nothing is sent: name that address itself"
    try:
        return " ".join(error.read(300).decode(errors="replace").split())
    except (OSError, http.client.HTTPException):
        return ""


def _ids(choice: dict[str, Any]) -> list[int]:
    ids = choice.get("token_ids")
    if ids is None:
        ids = [int(name.removeprefix("token_id:")) for name in choice["logprobs"]["tokens"]]
    for each in ids:
        if type(each) is not int or each < 0:
            raise ValueError(f"{each!r} is no token")
    return list(ids)


def _log_probs(choice: dict[str, Any]) -> list[float]:
    values = choice["logprobs"]["token_logprobs"]
    for each in values:
        if type(each) not in (int, float) or not math.isfinite(each):
            raise ValueError(f"{each!r} is no log-prob")
    return list(map(float, values))
