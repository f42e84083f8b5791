"""Latency: what is measured and how often, never how long. Decoding reads what whole forward passes would."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_students import moe

from limbeck.errors import SpecError
from limbeck.evals import latency
from limbeck.evals.run import run_evals
from limbeck.evals.subject import open_model
from limbeck.evals.untrained import latency_by_shape, open_random, open_untrained
from limbeck.spec.base import parse
from limbeck.spec.evals.latency import Latency
from limbeck.spec.recipe import Recipe
from limbeck.students.build import build
from limbeck.students.hf import save

SHORT = Latency(prompt_tokens=(4, 9), batch_sizes=(1, 3), context_tokens=5, decode_tokens=2, warmups=1, repeats=3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose n-th reading is n squared milliseconds: repeats take 1, 5, 9, 13 ms and so on."""
    readings: list[float] = []

    def now() -> float:
        readings.append(0.001 * len(readings) ** 2)
        return readings[-1]

    monkeypatch.setattr(latency.time, "perf_counter", now)
    return readings


def test_medians_leave_warm_ups_out(tiny, clock):
    timing = latency.time_prefill(tiny, SHORT, tokens=4)
    assert len(clock) == 2 * (1 + 3)
    assert timing.median_ms == pytest.approx(9)  # of 5, 9 and 13; the warm-up took 1
    assert timing.p90_ms == pytest.approx(12.2)
    clock.clear()
    assert latency.time_decode(tiny, SHORT, batch_size=3).median_ms == pytest.approx(9 / 2), "two tokens a repeat"


def test_what_is_read_and_written(tiny, monkeypatch):
    seen: list[tuple[tuple[int, ...], int]] = []
    forward = type(tiny.reader.model).forward

    def spied(self: Any, input_ids: Any, **keywords: Any) -> Any:
        cache = keywords.get("past_key_values")
        seen.append((tuple(input_ids.shape), 0 if cache is None else cache.get_seq_length()))
        return forward(self, input_ids=input_ids, **keywords)

    monkeypatch.setattr(type(tiny.reader.model), "forward", spied)
    latency.time_prefill(tiny, SHORT, tokens=9)
    assert seen == [((1, 9), 0)] * 4
    seen.clear()
    latency.time_decode(tiny, SHORT, batch_size=3)
    assert seen == [((3, 5), 0)] + [((3, 1), 5 + step) for step in range(2 * 4)]


@pytest.mark.parametrize("native", [True, False])
def test_the_whole_kind(native, tiny, tmp_path: Path, teacher_folder: Path):
    model = tiny
    per_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, channels, bytes
    if not native:
        spec = moe(sliding_window=3)
        student = build(spec, vocab_size=300, seed=0)
        save(student, spec=spec, folder=tmp_path / "s", max_positions=64, tokenizer_folder=teacher_folder, eos_token_id=1)
        model = open_model("moe", str(tmp_path / "s"), heldout=None, teacher=None, dtype="float32", device="cpu")
        per_token = 4 * 2 * 2 * 16 * 4
    latency.check(model, SHORT)
    result = run_evals(model, {"latency": SHORT}, folder=tmp_path)["latency"]
    names = ("prefill_4", "prefill_9", "decode_batch_1", "decode_batch_3")
    assert set(result.metrics) == {f"{name}_{part}" for name in names for part in ("ms", "p90_ms")} | {"kv_bytes_per_token"}
    assert result.metrics["kv_bytes_per_token"].value == per_token
    assert result.metrics["prefill_4_ms"].n == 3
    late = 9 * per_token if native else (9 + 3 * 3) * per_token / 4
    assert result.details["kv_bytes"]["9"] == late
    assert result.details["decode"][1]["batch_size"] == 3
    assert result.details["prefill"][0]["peak_memory_bytes"] is None


def test_lengths_that_do_not_fit_are_refused(tiny):
    with pytest.raises(SpecError, match=r"tiny reads 256 tokens, and prompt_tokens=257 are more"):
        latency.check(tiny, Latency(prompt_tokens=(4, 257)))
    with pytest.raises(SpecError, match=r"context_tokens=200 and 104 tokens written after it are more"):
        latency.check(tiny, Latency(prompt_tokens=(4,), context_tokens=200))
    with pytest.raises(ValueError, match="repeats"):
        Latency(repeats=1)


def test_a_recipes_student_is_timed_untrained(values: dict[str, Any]):
    recipe = parse(Recipe, values, source="test")
    model = open_untrained(recipe, dtype="float32", device="cpu")
    assert type(model.reader.model).__name__ == "Olmo3ForCausalLM"
    assert (model.reader.model.config.num_hidden_layers, model.reader.vocab_size) == (2, 300)
    assert model.longest is not None and model.longest >= 65_536
    with torch.no_grad():
        assert model.reader.model(input_ids=torch.arange(40)[None]).logits.isfinite().all()


def test_shapes_of_a_recipes_student_are_timed(values: dict[str, Any]):
    values["student"] |= {"hidden_size": 64, "num_heads": 8, "num_kv_heads": 4, "intermediate_size": 128}
    recipe = parse(Recipe, values, source="test")
    found = latency_by_shape(recipe, SHORT, layers=(1, 4), dtype="float32", device="cpu")
    assert [name.split("x")[0] for name in found] == ["1", "4"]
    sizes = [details["parameters"] for _, details in found.values()]
    assert abs(sizes[0] / sizes[1] - 1) < 0.04
    assert all("decode_batch_3_ms" in metrics for metrics, _ in found.values())


def test_shapes_of_a_models_architecture_are_timed(values: dict[str, Any], teacher_folder: Path, tmp_path: Path):
    """4 heads of 8 channels, 2 of keys: 32 channels of width; the MLP takes the rest of 37,216 parameters."""
    values["student"] = {"kind": "huggingface", "model": str(teacher_folder)}
    recipe = parse(Recipe, values, source="test")
    assert open_untrained(recipe, dtype="float32", device="cpu").reader.vocab_size == 300
    found = latency_by_shape(recipe, SHORT, layers=(1, 2, 4), dtype="float32", device="cpu")
    assert list(found)[1] == "2x32"
    parameters = [details["parameters"] for _, details in found.values()]
    assert parameters[1] == 2 * 300 * 32 + 2 * (32 * (32 + 16 + 16 + 32 + 3 * 64) + 64) + 32
    assert all(abs(each / parameters[1] - 1) <= 0.02 for each in parameters)
    one = open_random("one", recipe.student, {"num_hidden_layers": 1, "hidden_size": 16, "head_dim": 8}, device="cpu")
    assert one.reader.model.model.layers[0].self_attn.q_proj.weight.shape == (4 * 8, 16)


def test_experts_have_no_shapes(values: dict[str, Any], tmp_path: Path):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 300, "num_experts": 4}
    more = {"moe_intermediate_size": 8, "num_experts_per_tok": 2, "num_key_value_heads": 1, "head_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", **sizes, **more}), encoding="utf-8")
    values["student"] = {"kind": "huggingface", "model": str(tmp_path)}
    with pytest.raises(SpecError, match="qwen3_moe: shapes of equal size are for dense MLPs"):
        latency_by_shape(parse(Recipe, values, source="test"), SHORT, layers=(1,))
