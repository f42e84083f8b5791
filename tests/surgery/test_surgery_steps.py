"""Pruning in steps: the sizes it ends at, what its record says of the first model, and what each step was measured on."""

from typing import Any

import pytest
import torch
from prunable import eager, model_of, tokens
from small_models import llama, written_rows
from tiny_world import make_tokenizer

from limbeck.data.tokenizers import load_tokenizer
from limbeck.spec.base import parse
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.spec.prune import Pruning
from limbeck.surgery.compose import composed
from limbeck.surgery.cut import cut
from limbeck.surgery.folder import prune_folder, read_record
from limbeck.surgery.importance import measure_importance
from limbeck.surgery.keep import Kept
from limbeck.surgery.prune import prune


def places(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def test_a_cut_of_a_cut_is_one_cut_by_the_first_models_places():
    """Without fix-ups both ways give the same tensors."""
    model = llama()
    first = Kept(
        (0, 1, 3),
        places(*range(0, 32, 2)),
        neurons=tuple(places(*range(at, 40 + at)) for at in (0, 9, 20)),
        heads=(places(0, 2), places(1, 2), places(1, 3)),
    )
    then = Kept(
        (0, 2), places(*range(3, 11)), neurons=(places(0, 5, 39), places(2, 3, 4)), heads=(places(1), places(0)),
        groups=(places(1), places(0)),
    )  # fmt: skip
    one_by_one, at_once = cut(cut(model, first), then), cut(model, composed(first, then))
    assert at_once.config.num_hidden_layers == 2 and at_once.config.hidden_size == 8
    assert composed(first, then).layers == (0, 3)
    assert composed(first, then).neurons[1].tolist() == [22, 23, 24]
    found = at_once.state_dict()
    for name, x in one_by_one.state_dict().items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=0)
    assert composed(Kept((0, 1, 2, 3)), Kept((1, 2))) == Kept((1, 2))


@pytest.fixture
def asked(texts_folder) -> dict[str, Any]:
    texts = {"kind": "files", "paths": [f"{texts_folder}/train/*.txt"]}
    return {"calibration": {"texts": texts, "samples": 8, "sequence_length": 24}}


def test_steps_end_at_the_sizes_and_measure_anew(tmp_path, asked, monkeypatch):
    folder = tmp_path / "parent"
    make_tokenizer(folder)
    llama().save_pretrained(folder)
    seen: list[tuple[int, int]] = []

    def spied(model, rows, **others):
        seen.append((model.config.hidden_size, model.config.num_hidden_layers))
        return measure_importance(model, rows, **others)

    monkeypatch.setattr("limbeck.surgery.calibration.measure_importance", spied)
    values = {**asked, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "keep_last": 0, "steps": 2}
    spec = HuggingFaceStudent(model=str(folder), prune=parse(Pruning, values, source="test"))
    made = prune_folder(spec, data=None, to=tmp_path / "pruned", device=torch.device("cpu"))
    assert seen == [(32, 4), (16, 3)]
    record = read_record(made)
    assert record is not None
    after = record["after"]
    assert (after["hidden_size"], after["num_layers"], after["num_heads"], after["num_kv_heads"]) == (8, 2, 2, 2)
    assert len(record["influence"]) == 4
    kept = record["kept"]
    assert len(kept["layers"]) == 2 and set(kept["layers"]) <= set(range(4))
    assert len(kept["hidden"]) == 8 and max(kept["hidden"]) > 15, "places of the first model"
    assert [len(heads) for heads in kept["heads"]] == [2, 2]
    assert all(0 <= head < 4 for heads in kept["heads"] for head in heads)
    assert prune_folder(spec, data=None, to=made, device=torch.device("cpu")) == made and len(seen) == 2


def test_steps_of_a_model_with_a_shared_expert(asked, tmp_path, monkeypatch):
    """Its state holds a number alone, the share of the shared expert."""
    model = eager(model_of("own", dtype=torch.float32))
    make_tokenizer(tmp_path)
    monkeypatch.setattr("limbeck.surgery.calibration.calibration_rows", lambda *_, **__: list(tokens()))
    done = prune(
        model,
        parse(Pruning, {**asked, "hidden_size": 16, "steps": 2}, source="test"),
        tokenizer=load_tokenizer(str(tmp_path)),
        identity="none",
        data=None,
        device=torch.device("cpu"),
    )
    assert any(x.ndim == 0 for x in model.state_dict().values())
    assert len(done.kept.hidden_D) == done.model.get_input_embeddings().weight.shape[1] == 16


@pytest.mark.parametrize("depth", [{"kind": "influence"}, {"kind": "loss", "rows": 4}])
def test_the_layer_that_does_nothing_goes_first(depth, asked, tmp_path, monkeypatch):
    """By influence, and by the loss on what the model itself writes; by a task in `test_surgery_bypass.py`."""
    model = llama(idle=(2,))
    make_tokenizer(tmp_path)
    rows = written_rows(model)
    monkeypatch.setattr("limbeck.surgery.calibration.calibration_rows", lambda *_, **__: rows)
    monkeypatch.setattr("limbeck.surgery.prune.calibration_rows", lambda *_, **__: rows)
    done = prune(
        model,
        parse(Pruning, {**asked, "num_layers": 3, "depth": depth, "keep_first": 0, "keep_last": 0}, source="test"),
        tokenizer=load_tokenizer(str(tmp_path)),
        identity=f"none {depth}",
        data=None,
        device=torch.device("cpu"),
    )
    assert done.kept.layers == (0, 1, 3)
    token_BT = torch.stack(rows)
    torch.testing.assert_close(done.model(input_ids=token_BT).logits, model(input_ids=token_BT).logits)
    if depth["kind"] == "loss":
        assert done.depth is not None and done.depth.measures == ("loss_rise_nats",)
        assert dict(done.depth.costs)[2,] == (0.0,) and len(done.depth.costs) == 4


def test_a_task_decides_and_its_file_is_part_of_the_key(tmp_path, asked):
    folder, task = tmp_path / "parent", tmp_path / "task.jsonl"
    make_tokenizer(folder)
    llama(idle=(1,)).save_pretrained(folder)
    line = '{"question": "the state of", "choices": ["peace", "war and people"], "label": %d}\n'
    depth = {"kind": "task", "file": str(task)}
    spec = HuggingFaceStudent(model=str(folder), prune=parse(Pruning, {"num_layers": 3, "depth": depth}, source="test"))
    found = []
    for label in (0, 1):
        task.write_text(line % label, encoding="utf-8")
        found.append(prune_folder(spec, data=None, device=torch.device("cpu")))
    assert found[0] != found[1]
    for made in found:
        record = read_record(made)
        assert record is not None and record["influence"] is None
        assert record["depth"]["measures"] == ["error", "right_nats"]
        costs = {layers[0]: cost for layers, cost in record["depth"]["costs"]}
        assert set(costs) == {1, 2}, "the first and the last always stay"
        assert set(range(4)) - set(record["kept"]["layers"]) == {min(costs, key=costs.__getitem__)}
