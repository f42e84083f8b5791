"""Rollouts from a real server of completions, small and in a thread: it runs a transformers model, as vLLM does a large one."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from on_policy_world import make_student, on_policy, recipe_of
from transformers import AutoModelForCausalLM

from limbeck.errors import SpecError
from limbeck.evals.generate import Prompt
from limbeck.runs import open_run
from limbeck.spec.base import parse
from limbeck.spec.on_policy import ServerEngine
from limbeck.spec.teach_text import TeachText
from limbeck.teach.draws import read_draws
from limbeck.teach.text import teach_text
from limbeck.train.completion_server import ServerError, ServerSampler
from limbeck.train.train import train


class Server(ThreadingHTTPServer):
    """Completes prompts of ids with the model that it has loaded; `spoil` changes what it answers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.load(folder)
        self.spoil: Any = lambda answer: answer
        self.answered: list[dict[str, Any]] = []
        self.replaced: dict[str, bytes] = {}  # whole answers, by path
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []

    def load(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @torch.no_grad()
    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The last first: servers need not keep the order, but number their choices. A seed is each prompt's, as in vLLM."""
        choices = []
        for index, prompt in enumerate(asked["prompt"]):
            draw = torch.Generator()
            draw.manual_seed(asked["seed"]) if "seed" in asked else draw.seed()
            choices.append(self._choice(index, prompt, asked, draw))
        self.answered.append({"choices": choices[::-1]})
        return self.answered[-1]

    def _choice(self, index: int, prompt: list[int], asked: dict[str, Any], draw: torch.Generator) -> dict[str, Any]:
        ids, log_probs = list(prompt), []
        while len(log_probs) < asked["max_tokens"] and not (log_probs and ids[-1] in asked["stop_token_ids"]):
            log_probs_V = (self.model(torch.tensor(ids)[None]).logits[0, -1] / asked["temperature"]).log_softmax(-1)
            ids.append(int(torch.multinomial(log_probs_V.exp(), 1, generator=draw)))
            log_probs.append(float(log_probs_V[ids[-1]]))
        new = ids[len(prompt) :]
        return {
            "index": index,
            "token_ids": new,
            "finish_reason": "stop" if new[-1] in asked["stop_token_ids"] else "length",
            "logprobs": {"tokens": [f"token_id:{each}" for each in new], "token_logprobs": log_probs},
        }


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, asked, self.headers["Authorization"]))
        if self.path in self.server.replaced:
            self.wfile.write(self.server.replaced[self.path])
        elif self.path == "/load":
            self.server.load(Path(asked["path"]))
            self._answer(200, b"")
        elif self.path == "/v1/completions":
            self._answer(200, json.dumps(self.server.spoil(self.server.complete(asked))).encode())
        else:
            self._answer(404, b"no such thing\nhere")

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def server(student_folder: Path) -> Iterator[Server]:
    with Server(student_folder) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def sampler_of(url: str, **changes: Any) -> ServerSampler:
    spec = ServerEngine(url=url, model="student", timeout_seconds=20, **changes)
    return ServerSampler(spec, stops=(1,), vocab_size=300, max_new_tokens=6)


def prompts(count: int) -> list[Prompt]:
    draw = np.random.default_rng(0)
    return [Prompt(str(index), "", draw.integers(2, 300, size=3 + index)) for index in range(count)]


@pytest.mark.parametrize("says", ["token_ids", "names"])
def test_completions_are_in_the_order_of_their_prompts_with_the_servers_log_probs(says: str, server: Server) -> None:
    def only_names(answer: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{key: each[key] for key in each if key != "token_ids"} for each in answer["choices"]]}

    if says == "names":
        server.spoil = only_names
    asked = prompts(3)
    found = sampler_of(server.url).draw(asked, key="a")
    expected = server.answered[0]["choices"][::-1]
    assert [list(each.tokens) for each in found] == [each["token_ids"] for each in expected]
    for prompt, each in zip(asked, found, strict=True):
        whole = torch.tensor([[*prompt.tokens.tolist(), *each.tokens]])
        with torch.no_grad():
            log_probs_TV = server.model(whole).logits[0, len(prompt.tokens) - 1 : -1].log_softmax(-1)
        expected_T = log_probs_TV.gather(1, torch.tensor(each.tokens)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(each.log_probs), expected_T, rtol=0, atol=1e-5)
        assert each.stopped == (each.tokens[-1] == 1)
    (path, request, _), *_ = server.asked
    assert path == "/v1/completions"
    assert (request["temperature"], request["top_p"], request["top_k"], request["max_tokens"]) == (1.0, 1.0, -1, 6)
    assert request["prompt"] == [prompt.tokens.tolist() for prompt in asked]


def test_a_teacher_behind_a_server_writes_training_texts(server: Server, student_folder: Path, tmp_path: Path) -> None:
    """Without its weights here: what it drew and said is kept, and from another address of the same model it goes on."""
    asked = tmp_path / "prompts.jsonl"
    asked.write_text("".join(f'{{"prompt": "the {word}"}}\n' for word in ("law", "union", "war")), encoding="utf-8")

    def spec(url: str) -> TeachText:
        teacher = {"kind": "huggingface", "model": str(student_folder)}
        engine = {"kind": "server", "url": url, "model": "student"}
        told = {"prompts": str(asked), "output": str(tmp_path / "out"), "max_new_tokens": 6, "temperature": 0.5, "top_p": 0.9}
        return parse(TeachText, {**told, "teacher": teacher, "engine": engine, "truncated": "keep"}, source="test")

    assert teach_text(spec(server.url))["drawn"] == 3
    (_, request, _), *_ = server.asked
    assert (request["temperature"], request["top_p"], request["max_tokens"]) == (0.5, 0.9, 6)
    drawn = [one for group in read_draws(tmp_path / "out" / "drawn.jsonl") for one in group.continuations]
    said = server.answered[0]["choices"][::-1]
    assert [list(one.tokens) for one in drawn] == [each["token_ids"] for each in said]
    for one, each in zip(drawn, said, strict=True):
        assert one.log_probs == pytest.approx(each["logprobs"]["token_logprobs"], abs=1e-6)
    assert teach_text(spec("http://127.0.0.1:9/v1"))["drawn"] == 3


def test_continuations_of_one_prompt_differ(server: Server) -> None:
    """Of six tokens among 300, from a model that is nearly undecided."""
    found = sampler_of(server.url).draw(prompts(1) * 4, key="a")
    assert len({each.tokens for each in found}) == 4


def test_weights_are_given_again_after_so_many_steps(server: Server, student_folder: Path) -> None:
    """Also where rollouts are not written at every step: those steps are no multiples of `refresh_steps`."""
    sampler = sampler_of(server.url, refresh_url=server.url.removesuffix("/v1") + "/load", refresh_steps=3)
    written: list[int] = []
    for step in range(0, 18, 2):
        sampler.refresh(step, lambda step=step: written.append(step) or student_folder)
    assert written == [0, 4, 8, 12, 16]


def test_a_key_goes_to_the_host_that_completes_and_no_further(
    server: Server, student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    elsewhere = server.url.removesuffix("/v1").replace("127.0.0.1", "localhost") + "/load"
    sampler = sampler_of(server.url, api_key_variable="SOME_KEY", refresh_url=elsewhere)
    sampler.refresh(0, lambda: student_folder)
    sampler.check(prompts(1)[0])
    sampler_of(server.url).check(prompts(1)[0])
    assert [(path, key) for path, _, key in server.asked] == [
        ("/load", None),
        ("/v1/completions", "Bearer secret"),
        ("/v1/completions", None),
    ]


def test_an_answer_from_elsewhere_is_not_asked_for(server: Server) -> None:
    answer = f"HTTP/1.0 302 Found\r\nLocation: {server.url}/other\r\n\r\n"
    server.replaced["/v1/completions"] = answer.encode()
    with pytest.raises(ServerError, match=r"/completions refuses \(302\): it sends on to .*/v1/other, where nothing is sent"):
        sampler_of(server.url).draw(prompts(1), key="a")
    assert [path for path, *_ in server.asked] == ["/v1/completions"]


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{", b"nonsense\r\n\r\n", b"HTTP/1.0 500 No\r\nContent-Length: 9\r\n\r\n"],
)
def test_an_answer_that_breaks_off_is_one_line(answer: bytes, server: Server) -> None:
    server.replaced["/v1/completions"] = answer
    with pytest.raises(ServerError, match=r"^http://127\.0\.0\.1:\d+/v1/completions (does not answer|refuses) \([^\n]*$"):
        sampler_of(server.url).draw(prompts(1), key="a")


def test_a_run_gives_the_server_its_weights(
    server: Server, values: dict[str, Any], student_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second step: the draws that follow are on-policy, and the student's own cross-entropy is what the server said."""
    monkeypatch.setenv("SOME_KEY", "secret")
    reload = server.url.removesuffix("/v1") + "/load"
    engine = {"kind": "server", "url": server.url, "model": "student", "refresh_url": reload, "refresh_steps": 2}
    asked = on_policy(
        values,
        student_folder,
        on_policy={"engine": {**engine, "api_key_variable": "SOME_KEY"}, "max_new_tokens": 8},
        optimizer={"kind": "adamw", "lr": 0.05},
        budget={"kind": "steps", "amount": 4},
    )
    path = train(recipe_of(asked))
    loads = [request for where, request, _ in server.asked if where == "/load"]
    assert [request["path"] for request in loads] == [str((path / "served").resolve())] * 2
    assert {key for *_, key in server.asked} == {"Bearer secret"}
    apart = [abs(record["ce"] - record["student_entropy_nats"]) for record in open_run(path).events("train")]
    assert max(apart[0], apart[2]) < 1e-4  # of weights just loaded, on-policy
    assert min(apart[1], apart[3]) > 1e-3
    assert not (path / "served").exists()


def test_a_server_that_is_not_there_is_one_line_before_the_run(values: dict[str, Any], student_folder: Path) -> None:
    engine = {"kind": "server", "url": "http://127.0.0.1:9/v1", "model": "student"}
    recipe = recipe_of(on_policy(values, student_folder, on_policy={"engine": engine}))
    with pytest.raises(ServerError, match=r"^http://127\.0\.0\.1:9/v1/completions does not answer \(.* correct engine\.url$"):
        train(recipe)
    assert not Path(recipe.run_path).exists()


def changed(**values: Any) -> Any:
    def spoil(answer: dict[str, Any]) -> dict[str, Any]:
        return {"choices": [{**each, **values} for each in answer["choices"]]}

    return spoil


def text_alone(answer: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": each["index"], "text": "hello", "logprobs": None} for each in answer["choices"]]}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (text_alone, "does not say which tokens it drew"),
        (changed(token_ids=None, logprobs={"tokens": ["he", "llo"], "token_logprobs": [-1.0, -1.0]}), "return_token_ids"),
        (changed(token_ids=[3, 4]), "gave 2 tokens with"),
        (changed(token_ids=[]), "gave 0 tokens with"),
        (changed(token_ids=[999], logprobs={"token_logprobs": [-1.0]}), "gave token 999 of a vocabulary of 300"),
        (changed(token_ids=[5] * 9, logprobs={"token_logprobs": [-1.0] * 9}), "9 tokens where 6 were asked for"),
        (
            changed(token_ids=[5], logprobs={"token_logprobs": [-1.0]}, finish_reason="stop"),
            "an end without one of the model's stop tokens",
        ),
        (changed(token_ids=[-1], logprobs={"token_logprobs": [-1.0]}), "-1 is no token"),
        (changed(token_ids=[1.0], logprobs={"token_logprobs": [-1.0]}), "1.0 is no token"),
        (changed(token_ids=[5], logprobs={"token_logprobs": [None]}), "None is no log-prob"),
        (changed(token_ids=[5], logprobs={"token_logprobs": [float("nan")]}), "nan is no log-prob"),
        (changed(token_ids=[5], logprobs={"token_logprobs": None}), "does not say which tokens it drew"),
        (changed(token_ids=None, logprobs={"tokens": [5], "token_logprobs": [-1.0]}), "does not say which tokens it drew"),
        (lambda answer: {"choices": answer["choices"][1:]}, "asked for 2 completions and gave 1"),
        (lambda answer: {"error": "busy"}, "does not say which tokens it drew"),
        (lambda answer: "words", "does not say which tokens it drew"),
    ],
)
def test_an_answer_that_cannot_be_used_is_one_line(spoil: Any, complaint: str, server: Server) -> None:
    server.spoil = spoil
    with pytest.raises(ServerError) as caught:
        sampler_of(server.url).draw(prompts(2), key="a")
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"{server.url}/completions ")
    assert "\n" not in str(caught.value)


def test_a_refusal_says_what_the_server_said(server: Server) -> None:
    with pytest.raises(ServerError, match=r"/completions refuses \(404\): no such thing here$"):
        sampler_of(f"{server.url}/elsewhere").draw(prompts(1), key="a")


def test_an_adapter_cannot_be_given_to_a_server(values: dict[str, Any], student_folder: Path) -> None:
    engine = {"kind": "server", "url": "http://x/v1", "model": "m", "refresh_url": "http://x/load"}
    asked = on_policy(values, student_folder, on_policy={"engine": engine})
    with pytest.raises(SpecError, match=r"which student\.adapter is beside"):
        recipe_of({**asked, "student": {**asked["student"], "adapter": {"kind": "lora", "rank": 2}}})
