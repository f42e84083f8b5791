"""Generation against a loop of whole forward passes, for models that read padded rows and those that do not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_students import FOREIGN, NATIVE

from limbeck.errors import SpecError
from limbeck.evals import generate as engine
from limbeck.evals.chat import chat_text, end_of_turn, require_template, stop_ids
from limbeck.evals.generate import Prompt, check_fits, generate, read_samples, seconds_per_sample
from limbeck.evals.subject import EvalModel, open_model
from limbeck.spec.evals.decoding import Decoding
from limbeck.students.build import build
from limbeck.students.hf import save


def prompts(lengths: list[int], *, vocab_size: int = 290) -> list[Prompt]:
    drawn = np.random.default_rng(0)
    return [
        Prompt(f"p{index}", "", np.array([0, *drawn.integers(2, vocab_size, length - 1)]))
        for index, length in enumerate(lengths)
    ]


@torch.no_grad()
def plain(model: EvalModel, prompt: Prompt, *, limit: int, stops: set[int]) -> tuple[list[int], bool]:
    """Greedy, the whole row read anew for each token."""
    row: list[int] = prompt.tokens.tolist()
    for _ in range(limit):
        token = int(model.reader.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            return row[len(prompt.tokens) :], True
        row.append(token)
    return row[len(prompt.tokens) :], False


def student(name: str, folder: Path, tokenizer_folder: Path) -> EvalModel:
    spec, architecture = {**NATIVE, **FOREIGN}[name]
    built = build(spec, vocab_size=300, seed=0)
    with torch.no_grad():
        built.head_VD.mul_(20)  # untrained ones are all but undecided
    save(built, spec=spec, folder=folder, max_positions=64, tokenizer_folder=tokenizer_folder, eos_token_id=1, bos_token_id=0)
    model = open_model(name, str(folder), heldout=None, teacher=None, dtype="float32", device="cpu")
    expected = architecture if name in NATIVE else "LimbeckForCausalLM"
    assert type(model.reader.model).__name__ == expected
    return model


@pytest.mark.parametrize("name", ["olmo3", "ladder", "moe, grape", "dense, contextual", "golf"])
def test_students_write_what_whole_forward_passes_say(name, tmp_path, teacher_folder):
    model = student(name, tmp_path / "student", teacher_folder)
    given = prompts([9, 4, 9, 6, 30])
    found = generate(model, given, Decoding(max_new_tokens=12, batch_size=3))
    for prompt, sample in zip(given, found, strict=True):
        assert (list(sample.tokens), sample.stopped) == plain(model, prompt, limit=12, stops={1})
        assert sample.name == prompt.name
    assert len({sample.tokens for sample in found}) > 1


def test_samples_end_before_a_stop_token(tiny):
    given = prompts([3, 12, 7, 5])
    free = [plain(tiny, prompt, limit=10, stops=set())[0] for prompt in given]
    tiny.reader.model.generation_config.eos_token_id = [free[0][3], free[1][0]]
    stops = set(stop_ids(tiny))
    assert stops == {1, free[0][3], free[1][0]}
    found = generate(tiny, given, Decoding(max_new_tokens=10, batch_size=4))
    expected = [plain(tiny, prompt, limit=10, stops=stops) for prompt in given]
    assert [(list(sample.tokens), sample.stopped) for sample in found] == expected
    assert found[1].tokens == ()
    assert found[1].stopped
    assert tiny.reader.model.generation_config.eos_token_id == [free[0][3], free[1][0]], "the model's settings come back"


def test_a_models_own_taste_is_set_aside(tiny):
    given = prompts([8])
    before = generate(tiny, given, Decoding(max_new_tokens=10))[0].tokens
    tiny.reader.model.generation_config.repetition_penalty = 50.0
    tiny.reader.model.generation_config.do_sample = True
    assert generate(tiny, given, Decoding(max_new_tokens=10))[0].tokens == before


def test_samples_end_before_a_stop_string(tiny):
    given = prompts([6, 11])
    free = generate(tiny, given, Decoding(max_new_tokens=16))
    string = free[0].text[4:7]
    found = generate(tiny, given, Decoding(max_new_tokens=16), stop_strings=(string,))
    at = free[0].text.index(string)
    assert found[0].text == free[0].text[:at]
    assert found[0].stopped
    assert len(found[0].tokens) < len(free[0].tokens)
    assert string not in tiny.tokenizer.backend.decode(found[0].tokens)


def test_draws_depend_on_the_seed_alone(tiny):
    given = prompts([6, 11, 4])
    how = Decoding(max_new_tokens=8, temperature=1.0, batch_size=2)
    torch.manual_seed(1)
    one = [sample.tokens for sample in generate(tiny, given, how)]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert [sample.tokens for sample in generate(tiny, given, how)] == one
    assert torch.equal(torch.get_rng_state(), state), "the global generator isn't touched"
    assert [sample.tokens for sample in generate(tiny, given, how.model_copy(update={"seed": 1}))] != one


def test_draws_follow_the_models_distribution(tiny):
    prompt = prompts([6])[0]
    with torch.no_grad():
        logits_V = tiny.reader.model(input_ids=torch.tensor([prompt.tokens.tolist()])).logits[0, -1].double()
    temperature, count = 2.0, 3000
    expected = (logits_V / temperature).softmax(-1)
    top = int(expected.argmax())
    tiny.reader.model.generation_config.top_k = 1  # somebody's taste
    how = Decoding(max_new_tokens=1, temperature=temperature, batch_size=count)
    samples = generate(tiny, [replace(prompt, name=str(index)) for index in range(count)], how)
    share = sum(sample.tokens == (top,) for sample in samples) / count
    p = float(expected[top])
    assert abs(share - p) < 4 * (p * (1 - p) / count) ** 0.5  # four standard deviations, and the draws are always the same


def test_what_is_kept_is_not_made_again(tiny, tmp_path, monkeypatch):
    path = tmp_path / "evals" / "x.generations.jsonl"
    given, how = prompts([5, 9, 7, 6, 8]), Decoding(max_new_tokens=6, batch_size=2, temperature=0.7)
    whole = generate(tiny, given, how, path=path)
    assert sorted(sample.name for sample in read_samples(path)) == sorted(sample.name for sample in whole)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:20])  # killed in the middle of the second batch of 2
    made: list[int] = []
    write = engine._write

    def counted(model, chosen, *args, **keywords):
        made.append(keywords["batch"])
        return write(model, chosen, *args, **keywords)

    monkeypatch.setattr(engine, "_write", counted)
    again = generate(tiny, given, how, path=path)
    assert made == [1, 2]
    assert [(sample.name, sample.tokens) for sample in again] == [(sample.name, sample.tokens) for sample in whole]
    made.clear()
    assert generate(tiny, given, how, path=path) == again
    assert made == []
    generate(tiny, given, how.model_copy(update={"seed": 3}), path=path)
    assert made == [0, 1, 2], "other samples are asked for"
    asked = json.loads(path.read_text().splitlines()[0])["asked"]
    assert asked["decoding"]["seed"] == 3
    assert len(path.read_text().splitlines()) == 6


def test_prompts_that_do_not_fit_are_refused(tiny):
    with pytest.raises(SpecError, match=r"tiny reads 256 tokens, and prompt p1 has 200 before max_new_tokens=57: lower"):
        check_fits(tiny, prompts([3, 200]), Decoding(max_new_tokens=57))
    check_fits(tiny, prompts([3, 200]), Decoding(max_new_tokens=56))


def test_seconds_are_those_of_whole_batches(tiny):
    samples = generate(tiny, prompts([5, 5, 5]), Decoding(max_new_tokens=2, batch_size=2))
    timed = [replace(sample, batch_seconds=4.0 if sample.batch == 0 else 1.0) for sample in samples]
    assert seconds_per_sample(timed) == pytest.approx(5.0 / 3)


def test_top_p_needs_a_temperature():
    with pytest.raises(ValueError, match="greedy"):
        Decoding(top_p=0.9)


def test_the_end_of_a_turn_is_read_off_the_template(chatty):
    assert chatty.tokenizer.backend.convert_tokens_to_ids("<|over|>") == 302
    assert end_of_turn(chatty.tokenizer) == 302
    assert stop_ids(chatty) == (1, 302)
    messages = [{"role": "user", "content": "law"}]
    assert chat_text(chatty.tokenizer, messages, answers=True) == "<|user|>law<|over|>\n<|assistant|>"


def test_a_tokenizer_without_a_template_says_so(tiny):
    assert end_of_turn(tiny.tokenizer) is None
    with pytest.raises(Exception, match=r"has no chat template: set format=shots"):
        require_template(tiny.tokenizer, remedy="set format=shots")
