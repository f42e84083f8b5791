"""Rollouts and their batches: what is drawn is the model's whole distribution, and what is kept of it is what it was.

Shapes: N drawn tokens, B sequences, T positions, V vocabulary.
"""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_students
import torch
from on_policy_world import make_student, on_policy, recipe_of
from transformers import AutoModelForCausalLM

from limbeck.data.loader import Batch
from limbeck.data.tokenizers import load_tokenizer
from limbeck.errors import DataError, LimbeckError, SpecError
from limbeck.evals.generate import Prompt
from limbeck.signals.types import DenseRows
from limbeck.train.loop import batch_loss
from limbeck.train.on_policy import OnPolicySteps
from limbeck.train.rollout_batches import batches_from
from limbeck.train.rollout_file import RolloutFile
from limbeck.train.rollouts import Continuation, Rollout, TransformersSampler, ended
from limbeck.train.setup import Setup, open_setup

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"))


def prompts(*lengths: int) -> list[Prompt]:
    draw = np.random.default_rng(0)
    return [Prompt(str(index), "", draw.integers(2, 300, size=length)) for index, length in enumerate(lengths)]


def sampler_of(folder: Path, *, batch_size: int = 8, max_new_tokens: int = 20, **sharpened: float) -> TransformersSampler:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_tokenizer(str(folder))
    sizes = {"vocab_size": 300, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    return TransformersSampler(model, tokenizer, **sizes, dtype=torch.float32, device=CPU, **sharpened)


@torch.no_grad()
def require_own_log_probs(model: Any, asked: list[Prompt], drawn: list[Continuation]) -> None:
    """The log-softmax of the model, each sequence read whole and alone."""
    for prompt, continuation in zip(asked, drawn, strict=True):
        whole = torch.tensor([[*prompt.tokens.tolist(), *continuation.tokens]])
        log_probs_TV = model(whole).logits[0].log_softmax(-1)
        at_T = torch.arange(len(prompt.tokens) - 1, whole.shape[1] - 1)
        expected_T = log_probs_TV[at_T, whole[0, at_T + 1]]
        torch.testing.assert_close(torch.tensor(continuation.log_probs), expected_T, rtol=0, atol=1e-4)


def test_log_probs_are_those_of_the_model_at_prompts_of_any_length(student_folder: Path) -> None:
    sampler, asked = sampler_of(student_folder, batch_size=3), prompts(3, 11, 1, 7, 7)
    drawn = [sampler.draw(asked, key=key) for key in "abc"]
    for found in drawn:
        require_own_log_probs(sampler.model, asked, found)
    together = [each for found in drawn for each in found]
    for each in together:
        assert each.stopped == (each.tokens[-1] == 1)
        assert len(each.tokens) == len(each.log_probs) <= 20 and (each.stopped or len(each.tokens) == 20)
    assert 0 < sum(each.stopped for each in together) < len(together)


def test_a_row_ends_with_its_first_stop_token() -> None:
    assert ended([5, 1, 1, 1], [-1.0, -2.0, -9.0, -9.0], stops=(1, 2)) == Continuation((5, 1), (-1.0, -2.0), stopped=True)
    assert ended([5, 6, 2], [-1.0, -2.0, -3.0], stops=(1, 2)) == Continuation((5, 6, 2), (-1.0, -2.0, -3.0), stopped=True)
    assert ended([5, 6], [-1.0, -2.0], stops=(1, 2)) == Continuation((5, 6), (-1.0, -2.0), stopped=False)


OWN = {
    "olmo3": tiny_students.olmo3(),
    "moe": tiny_students.moe(),
    "golf": tiny_students.golf(ntk_length=48),
    "ladder": tiny_students.ladder(),
}


@pytest.mark.parametrize("kind", OWN)
def test_a_student_of_our_own_writes_with_its_own_weights(kind: str, values: dict[str, Any]) -> None:
    """Log-probs are those of the student's own forward, before and after its weights change in place."""
    batch = {"sequences": 8, "micro_sequences": 1}
    setup = open_setup(recipe_of(on_policy({**values, "student": OWN[kind].model_dump(mode="json")}, batch=batch)))
    assert setup.writers is not None
    sampler, asked = setup.writers.samplers["student"], prompts(4, 9, 4)

    def read(whole: torch.Tensor) -> Any:
        return type("Output", (), {"logits": setup.student.logits(setup.student(whole).hidden_BTD)})

    first = sampler.draw(asked, key="a")
    require_own_log_probs(read, asked, first)
    with torch.no_grad():
        setup.student.head_VD.mul_(3)
    second = sampler.draw(asked, key="a")
    require_own_log_probs(read, asked, second)
    assert [each.log_probs for each in first] != [each.log_probs for each in second]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8)])
def test_draws_follow_the_distribution(temperature: float, top_p: float, student_folder: Path) -> None:
    """4,000 first tokens after one prompt against the softmax: the chi-squared of the commoner ids, the rest as one.

    With `top_p`, of the fewest ids that have so much together; log-probs are those of the whole softmax at temperature 1.

    The model's own generation_config asks for the five most probable at temperature 0.3, which must be set aside.
    """
    sampler = sampler_of(student_folder, batch_size=4000, max_new_tokens=1, temperature=temperature, top_p=top_p)
    sampler.model.generation_config.update(do_sample=True, top_k=5, temperature=0.3)
    (prompt,) = prompts(5)
    drawn = sampler.draw([prompt] * 4000, key="x")
    counts = Counter(each.tokens[0] for each in drawn)
    with torch.no_grad():
        logits = sampler.model(torch.tensor(prompt.tokens)[None]).logits[0, -1].double()
    for each in drawn[:50]:
        assert each.log_probs[0] == pytest.approx(float(logits.log_softmax(-1)[each.tokens[0]]), abs=1e-4)
    probs = (logits / temperature).softmax(-1)
    likely, order = probs.sort(descending=True)
    outside = order[likely.cumsum(0) - likely >= top_p]
    assert not any(counts[int(index)] for index in outside)
    probs = probs.index_fill(0, outside, 0) / (1 - probs[outside].sum())
    common = [index for index in range(300) if float(probs[index]) * 4000 >= 5]
    found = [counts[index] for index in common]
    expected = [float(probs[index]) * 4000 for index in common]
    found, expected = [*found, 4000 - sum(found)], [*expected, 4000 - sum(expected)]
    squares = sum((one - other) ** 2 / other for one, other in zip(found, expected, strict=True) if other > 1e-6)
    degrees = len(common)
    assert degrees > 20
    assert squares < degrees + 4 * math.sqrt(2 * degrees)


def test_draws_depend_on_the_key_alone(student_folder: Path) -> None:
    sampler, asked = sampler_of(student_folder), prompts(4, 6)
    torch.manual_seed(0)
    first = sampler.draw(asked, key="a")
    after = torch.rand(1)
    torch.manual_seed(1)
    assert sampler.draw(asked, key="a") == first
    assert sampler.draw(asked, key="b") != first
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)  # nobody else's numbers are taken


def test_a_sampler_leaves_the_model_as_it_was(student_folder: Path) -> None:
    sampler = sampler_of(student_folder)
    model = sampler.model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    settings = model.generation_config
    sampler.draw(prompts(3), key="a")
    assert model.training and all(module.training for module in model.modules())
    assert not frozen.requires_grad
    assert model.generation_config is settings


def rollout(prompt: tuple[int, ...], tokens: tuple[int, ...], *, stopped: bool = True) -> Rollout:
    log_probs = tuple(-0.5 - 0.25 * place for place in range(len(tokens)))
    return Rollout(3, "student", "p", prompt, Continuation(tokens, log_probs, stopped), "text")


def made_by_hand(*, mask_truncated: bool) -> Batch:
    """Rows whose hidden state is the number of their position among all."""
    rollouts = [rollout((5, 6, 7), (8, 1)), rollout((9, 4), (3, 3, 3), stopped=False)]
    rows = DenseRows(torch.arange(8.0)[:, None], torch.zeros(2, 1), 1.0)
    (batch,) = batches_from(rollouts, rows, micro_sequences=4, mask_truncated=mask_truncated)
    return batch


def test_a_batch_by_hand() -> None:
    """Both have four positions: 5 6 7 8 -> 6 7 8 1 and 9 4 3 3 -> 4 3 3 3, of which two and three were drawn."""
    batch = made_by_hand(mask_truncated=False)
    assert batch.tokens_BT.tolist() == [[5, 6, 7, 8], [9, 4, 3, 3]]
    assert batch.targets_BT.tolist() == [[6, 7, 8, 1], [4, 3, 3, 3]]
    assert batch.mask_BT is not None and batch.mask_BT.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert batch.sampled_log_probs_BT is not None
    assert batch.sampled_log_probs_BT.tolist() == [[0, 0, -0.5, -0.75], [0, -0.5, -0.75, -1.0]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3]] * 2
    assert isinstance(batch.rows, DenseRows) and batch.rows.hidden_TE.flatten().tolist() == list(range(8))
    assert (batch.counted, batch.read, batch.padding) == (5, 8, 0)
    masked = made_by_hand(mask_truncated=True)
    assert masked.mask_BT is not None and masked.mask_BT.tolist() == [[False, False, True, True], [False] * 4]
    assert masked.counted == 2


def test_shorter_sequences_are_padded_and_find_their_rows() -> None:
    rollouts = [rollout((5,), (1,)), rollout((9, 4), (3, 3, 1)), rollout((7, 7), (2, 1))]
    rows = DenseRows(torch.arange(8.0)[:, None], torch.zeros(2, 1), 1.0)
    long, short = batches_from(rollouts, rows, micro_sequences=2, mask_truncated=True)
    assert isinstance(long.rows, DenseRows) and isinstance(short.rows, DenseRows)
    assert long.tokens_BT.tolist() == [[9, 4, 3, 3], [7, 7, 2, 0]]
    assert long.rows.hidden_TE.view(2, 4)[:, :3].tolist() == [[1, 2, 3], [5, 6, 7]]
    assert long.mask_BT is not None and long.mask_BT[1].tolist() == [False, True, True, False]
    assert (long.counted, long.read, long.padding) == (5, 7, 1)
    assert short.tokens_BT.tolist() == [[5]] and short.rows.hidden_TE.tolist() == [[0]]


@pytest.mark.parametrize("signal", [{"kind": "dense"}, {"kind": "topk", "k": 8, "live": True}], ids=["dense", "topk"])
def test_what_the_teacher_says_of_a_prompt_changes_nothing(
    signal: dict[str, Any], values: dict[str, Any], student_folder: Path
) -> None:
    """Rows of prompts and of padding become another's; of drawn tokens, only then the gradient changes."""
    setup = open_setup(recipe_of(on_policy(values, student_folder, signal=signal)))
    batch = next(OnPolicySteps(setup, Path(setup.recipe.run_path)).steps(0))[0]
    assert batch.mask_BT is not None
    outside = ~batch.mask_BT.flatten()
    before = value_and_gradient(setup, batch)
    assert value_and_gradient(setup, replace(batch, rows=spiked(batch.rows, outside))) == before
    assert value_and_gradient(setup, replace(batch, rows=spiked(batch.rows, ~outside))) != before


def spiked(rows: Any, where_T: torch.Tensor) -> Any:
    """Other rows at some positions: of dense ones other hidden states, of others other log-probs."""
    name = "hidden_TE" if isinstance(rows, DenseRows) else "log_probs_TK"
    changed = getattr(rows, name).clone()
    changed[where_T] = changed[where_T].flip(1) * 3
    return replace(rows, **{name: changed})


def value_and_gradient(setup: Setup, batch: Batch) -> tuple[float, float]:
    setup.student.zero_grad()
    output, _ = batch_loss(setup, batch, tokens=10)
    output.loss.backward()
    return output.loss.item(), math.fsum(float(each.grad.double().square().sum()) for each in setup.student.parameters())


def test_a_file_keeps_every_bit_and_forgets_what_comes_after(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    kept = tuple(float(f"{value:.9g}") for value in draw.tolist())
    written = [
        replace(rollout((1, 2), tuple(range(50))), step=step, continuation=Continuation(tuple(range(50)), kept, True))
        for step in (1, 2, 3)
    ]
    file = RolloutFile(tmp_path, rank=0)
    file.add(written)
    assert list(file.read()) == written
    assert np.array_equal(np.array(next(file.read()).continuation.log_probs, dtype=np.float32), draw)
    file.rewind(2)
    assert list(file.read()) == written[:2]
    with file.path.open("a") as text:
        text.write('{"step": 3, "wri')
    assert list(file.read()) == written[:2]
    file.path.write_text('{"step": 3}\n')
    with pytest.raises(LimbeckError, match=r"rollouts\.jsonl, line 1 is damaged"):
        list(file.read())


def test_outcomes() -> None:
    assert rollout((1,), (4, 5, 1)).outcome == "stopped"
    assert rollout((1,), tuple(range(2, 40)), stopped=False).outcome == "truncated"
    assert rollout((1,), (9, *(4, 5) * 20), stopped=False).outcome == "loop"


def test_prompts_are_the_beginnings_of_documents_in_an_endless_order(values: dict[str, Any]) -> None:
    setup = open_setup(recipe_of(on_policy(values)))
    assert setup.writers is not None
    stream, store = setup.writers.prompts, setup.texts.train
    long_enough = [index for index in range(len(store)) if store.lengths[index] > 10]
    epochs = [[stream.prompt(epoch * len(long_enough) + index).name for index in range(len(long_enough))] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(store.ids[index] for index in long_enough)
    assert epochs[0] != epochs[1]
    for index in long_enough:
        named = next(each for each in stream.prompts if each.name == store.ids[index])
        assert named.tokens.tolist() == store.document(index)[:9].tolist()


def test_prompts_of_a_file_may_be_chats(values: dict[str, Any], student_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(student_folder))
    each = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    tokenizer.backend.chat_template = each + "{% if add_generation_prompt %}<s>ai:{% endif %}"
    tokenizer.backend.save_pretrained(tmp_path / "chatty")
    file = tmp_path / "prompts.jsonl"
    chat = {"messages": [{"role": "user", "content": "law"}]}
    file.write_text(json.dumps({"prompt": "the state"}) + "\n" + json.dumps(chat) + "\n", encoding="utf-8")
    asked = on_policy(values, student_folder, on_policy={"prompts": {"kind": "file", "path": str(file)}})
    setup = open_setup(recipe_of({**asked, "data": {**asked["data"], "tokenizer": str(tmp_path / "chatty")}}))
    assert setup.writers is not None
    plain, chatty = setup.writers.prompts.prompts
    assert tokenizer.backend.decode(plain.tokens.tolist()) == "<s>the state"
    assert tokenizer.backend.decode(chatty.tokens.tolist()) == "<s>user: law</s><s>ai:"


def test_a_length_that_changes_what_was_read_is_refused(values: dict[str, Any]) -> None:
    short = on_policy({**values, "student": tiny_students.golf(ntk_length=40).model_dump(mode="json")})
    with pytest.raises(SpecError, match=r"data\.sequence_length=48 is more than student\.ntk_length=40"):
        open_setup(recipe_of(short))


def test_prompts_that_cannot_be_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    by_file = {"prompts": {"kind": "file", "path": str(file)}}
    for text, error, complaint in (
        ("", DataError, "holds no prompt"),
        ('{"text": "law"}\n', DataError, "line 1: neither a `prompt`"),
        ('{"messages": [{"role": "user", "content": "law"}]}\n', DataError, "has no chat template"),
        (json.dumps({"prompt": "law " * 40}), SpecError, r"line 1 has \d+ tokens, .* data\.sequence_length=48"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(error, match=complaint) as caught:
            open_setup(recipe_of(on_policy(values, on_policy=by_file)))
        assert "\n" not in str(caught.value)
    long = {"prompts": {"kind": "documents", "tokens": 5000}}
    with pytest.raises(DataError, match=r"more than on_policy\.prompts\.tokens=5000 tokens: lower it"):
        open_setup(recipe_of(on_policy(values, on_policy=long)))
