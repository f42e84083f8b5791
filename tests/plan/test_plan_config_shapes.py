"""A pretrained model's architecture in other shapes of equal size, counted by hand."""

import pytest

from limbeck.plan.config_shapes import equal_config_shapes

PRUNED = {
    "model_type": "mistral",
    "vocab_size": 49152,
    "hidden_size": 448,
    "intermediate_size": 1152,
    "num_hidden_layers": 20,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "sliding_window": None,
}


def count(config: dict) -> int:
    width, queries, keys = config["hidden_size"], 64 * config["num_attention_heads"], 64 * config["num_key_value_heads"]
    layer = 2 * width * (queries + keys) + 3 * width * config["intermediate_size"] + 2 * width
    return 49152 * width + config["num_hidden_layers"] * layer + width


def test_a_pruned_width_is_no_multiple_of_its_heads_and_other_depths_have_other_widths_all_the_same() -> None:
    assert count(PRUNED) == 66_766_784
    shapes = equal_config_shapes(PRUNED, depths=[5, 10, 20, 40])
    found = [PRUNED | changes for changes in shapes.values()]
    assert [count(each) / count(PRUNED) for each in found] == pytest.approx([1, 1, 1, 1], abs=0.02)
    widths = [each["hidden_size"] for each in found]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 4 and not any(width % 8 for width in widths)
    assert widths[2] == 448 and found[2]["intermediate_size"] == 1152
    for each in found:
        assert each["num_attention_heads"] == 3 * each["num_key_value_heads"]
        assert each["hidden_size"] / each["num_attention_heads"] == pytest.approx(448 / 9, rel=0.02)
