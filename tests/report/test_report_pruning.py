"""The picture of a pruned model from a record written by hand: what is in each line and in each panel."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from limbeck.cli.show_pruned import pruned_values
from limbeck.drawing import write_figure
from limbeck.errors import LimbeckError
from limbeck.report.pruning import pruning_file, pruning_lines, read_pruning
from limbeck.report.pruning_figure import GOES, STAYS, pruning_figure


@pytest.fixture
def record() -> dict[str, Any]:
    """Four layers, of which the third goes; the first has an MLP of its own, the others experts."""
    before = {
        "parameters": 1000,
        "num_layers": 4,
        "hidden_size": 6,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 2,
        "intermediate_size": 100,
        "num_experts": 4,
        "expert_size": 8,
        "shared_size": None,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    after = {**before, "parameters": 400, "num_layers": 3, "hidden_size": 4, "num_heads": 2, "num_experts": 3}
    return {
        "key": "k",
        "parent": {"model": "someone/parent"},
        "before": before,
        "after": {**after, "intermediate_size": 25},
        "influence": [0.4, 0.1, 0.05, 0.2],
        "depth": {"measures": ["loss_rise_nats"], "costs": [[[1], [0.5]], [[2], [-0.25]]]},
        "kept": {
            "layers": [0, 1, 3],
            "hidden": [0, 2, 3, 5],
            "neurons": [list(range(25)), None, None],
            "shared": None,
            "heads": [[0, 2], [1, 2], [1, 3]],
            "groups": None,
            "experts": [None, [0, 1, 3], [1, 2, 3]],
            "expert_neurons": None,
        },
    }


def written(record: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pruning.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def test_layers_have_the_shares_that_stayed(record: dict[str, Any], tmp_path: Path):
    view = read_pruning(written(record, tmp_path))
    assert [layer.stays for layer in view.layers] == [True, True, False, True]
    assert [layer.kind for layer in view.layers] == ["sliding", "full"] * 2
    assert [layer.cost for layer in view.layers] == [None, (0.5,), (-0.25,), None]
    assert [layer.share("neurons") for layer in view.layers] == [0.25, None, None, None]
    assert [layer.share("heads") for layer in view.layers] == [0.5, 0.5, None, 0.5]
    assert [layer.share("groups") for layer in view.layers] == [1.0, 1.0, None, 1.0]
    assert [layer.share("experts") for layer in view.layers] == [None, 0.75, None, 0.75]
    assert view.layers[3].kept["experts"] == (False, True, True, True)
    assert view.hidden == (True, False, True, True, False, True)


def test_there_is_a_line_for_every_layer(record: dict[str, Any], tmp_path: Path):
    lines = pruning_lines(read_pruning(written(record, tmp_path)))
    text = [line.plain for line in lines]
    assert text[0] == "someone/parent: 1,000 parameters, pruned to 400"
    assert "hidden_size: 6 → 4 (67%)" in text and "num_layers: 4 → 3 (75%)" in text
    assert not any(line.startswith("num_kv_heads") for line in text)
    first, second, third, fourth = (line.split() for line in text[-4:])
    assert (first[:3], second[:3], third[:3]) == (["0", "stays", "sliding"], ["1", "stays", "full"], ["2", "goes", "sliding"])
    assert first[3] == "█" * 8 and first[4] == "0.4000" and third[3] == "█" and third[4:] == ["0.0500", "-0.2500"]
    assert "25%" in first and "75%" in fourth and lines[-2].style == "dim" and lines[-1].style == ""
    header = text[-5]
    for word, of, value in (("influence", text[-4], "█"), ("neurons", text[-4], "██ "), ("experts", text[-1], "██████ ")):
        at = header.index(word)
        assert of[at:].startswith(value), (word, of)


def test_what_was_not_measured_has_no_column(record: dict[str, Any], tmp_path: Path):
    record |= {"influence": None, "depth": None}
    text = [line.plain for line in pruning_lines(read_pruning(written(record, tmp_path)))]
    assert not any("influence" in line or "loss_rise" in line for line in text)


def test_only_differences_have_a_sign_and_steps_are_told(record: dict[str, Any], tmp_path: Path):
    told = "influence and cost: of the model before the first step"
    rise = [line.plain for line in pruning_lines(read_pruning(written(record, tmp_path)))]
    assert "+0.5000" in rise[-3] and told not in rise
    record |= {"depth": {"measures": ["error", "right_nats"], "costs": [[[1], [0.5, 3.0]]]}, "pruning": {"steps": 2}}
    task = [line.plain for line in pruning_lines(read_pruning(written(record, tmp_path)))]
    assert "0.5000/3.0000" in task[-4] and "+" not in task[-4] and task[-1] == told


def test_what_is_no_number_is_not_known(record: dict[str, Any], tmp_path: Path):
    record |= {"influence": [0.4, float("nan"), 0.05, 0.2], "depth": {"measures": ["l"], "costs": [[[1], [float("inf")]]]}}
    view = read_pruning(written(record, tmp_path))
    assert [layer.influence for layer in view.layers] == [0.4, None, 0.05, 0.2] and view.layers[1].cost is None
    json.dumps(pruned_values(view), allow_nan=False)


def test_the_figure_has_rows_for_layers_and_a_strip_for_channels(record: dict[str, Any], tmp_path: Path):
    view = read_pruning(written(record, tmp_path))
    draw, size = pruning_figure(view)
    figure = Figure(figsize=size)
    draw(figure)
    panels = {axes.get_title(loc="left") or axes.get_title(): axes for axes in figure.get_axes()}
    bars = panels["Influence of layers"].patches
    assert [bar.get_width() for bar in bars] == [0.4, 0.1, 0.05, 0.2]
    colours = [tuple(bar.get_facecolor()) for bar in bars]
    assert colours[0] == colours[1] == colours[3] != colours[2]
    assert [bar.get_width() for bar in panels["Neurons"].patches] == [0.25, 0, 0, 0]
    cells = np.asarray(panels["Heads"].collections[0].get_array()).reshape(4, 4)
    assert cells.tolist() == [[2, 1, 2, 1], [1, 2, 2, 1], [0, 0, 0, 0], [1, 2, 1, 2]]
    experts = np.asarray(panels["Experts"].collections[0].get_array()).reshape(4, 4)
    assert experts.tolist() == [[0] * 4, [2, 2, 1, 2], [0] * 4, [1, 2, 2, 2]]
    strip = np.asarray(panels["Hidden channels: 4 of 6 stay"].collections[0].get_array()).ravel()
    assert strip.tolist() == [1, 0, 1, 1, 0, 1]
    assert STAYS != GOES
    vector, raster = write_figure(draw, tmp_path / "picture", size=size)
    assert b"<svg" in vector.read_bytes() and raster.read_bytes().startswith(b"\x89PNG")


def test_a_run_shows_its_students(record: dict[str, Any], tmp_path: Path):
    assert pruning_file(tmp_path) is None and pruning_file("no/such/folder") is None
    path = written(record, tmp_path / "student")
    assert pruning_file(tmp_path) == path


def test_damage_is_named(record: dict[str, Any], tmp_path: Path):
    for broken in ({**record, "before": None}, {**record, "influence": [0.1]}, []):
        with pytest.raises(LimbeckError, match=r"pruning\.json is damaged"):
            read_pruning(written(broken, tmp_path))
