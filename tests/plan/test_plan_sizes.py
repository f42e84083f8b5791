"""Students as a user names them, and amounts as people write them."""

from importlib.resources import files

import pytest

from limbeck.errors import SpecError
from limbeck.plan.quantities import amount, is_amount
from limbeck.plan.sizes import size_of, size_of_recipe
from limbeck.spec.load import load_recipe


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1B", 1e9),
        ("1b", 1e9),
        ("1G", 1e9),
        ("3e8", 3e8),
        ("198M", 198e6),
        ("5T", 5e12),
        ("64k", 64e3),
        ("1_000_000", 1e6),
        ("1,000,000", 1e6),
        (" 1.5B ", 1.5e9),
        ("1e21", 1e21),
        ("2.5e0B", 2.5e9),
        ("7", 7.0),
    ],
)
def test_amounts(text, value):
    assert is_amount(text)
    assert amount(text, source="--tokens") == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("text", ["", "B", "big", "1BB", "1 B B", "0x10", "1e", "--", "nano", "1Q", "1e9 tokens"])
def test_words_are_no_amounts(text):
    assert not is_amount(text)
    with pytest.raises(SpecError, match=r"--tokens='.*' is not an amount: write a number such as 3e8, 198M, 1B or 5T"):
        amount(text, source="--tokens")


@pytest.mark.parametrize("text", ["inf", "nan", "1e999", "infB", "-nan", "1e300T"])
def test_amounts_are_finite(text):
    with pytest.raises(SpecError, match="is not an amount"):
        amount(text, source="--tokens")


@pytest.mark.parametrize("text", ["0", "0B", "-1", "-1B", "-1e-30", "-inf"])
def test_amounts_are_more_than_zero(text):
    with pytest.raises(SpecError, match=r"--tokens=.*must be more than zero"):
        amount(text, source="--tokens")


def test_amounts_have_a_least():
    assert amount("2k", source="--x", least=2000.0) == 2000
    with pytest.raises(SpecError, match="--x=1999: must be at least 2000"):
        amount("1999", source="--x", least=2000.0)


@pytest.mark.parametrize(("text", "params", "name"), [("1B", 1e9, "1B"), ("3e8", 3e8, "300M"), ("1_000_000", 1e6, "1M")])
def test_a_number_is_of_the_family(text, params, name):
    size = size_of(text)
    assert (size.name, size.params) == (name, params)
    # 12 n d**2 parameters with d = 128 n; context 4,096 and vocabulary 32,768.
    width = (128 * params / 12) ** (1 / 3)
    assert size.flops_per_token == pytest.approx(2 * params + 2 * 4096 * width**2 / 128 + 2 * 32768 * width, rel=1e-12)
    assert size.training_flops_per_token == 3 * size.flops_per_token
    assert (size.context, size.vocab_size) == (4096, None)


@pytest.mark.parametrize("text", ["0", "-1B", "nan", "inf", "999"])
def test_numbers_that_are_no_sizes(text):
    with pytest.raises(SpecError, match="--student="):
        size_of(text)


@pytest.mark.parametrize("text", ["ladder-198m", "Ladder-198M"])
def test_a_member_by_name_counts_its_own_layers(text):
    """Ten layers of 1,280 channels, 16 heads of 80 and an MLP of 3,456; the table's FLOPs count softmax and 4 d a layer."""
    d, layers, mlp = 1280, 10, 3456
    params = layers * (4 * d * d + 3 * d * mlp + 2 * d + 2 * 80) + d
    flops = 2 * params + 2 * 4096 * layers * d + 2 * 32768 * d + layers * (2.5 * 16 * 4096 + 4 * d)
    size = size_of(text)
    assert (size.name, size.params, size.flops_per_token) == ("ladder-198m", params, flops)


def test_a_recipes_student_counts_its_own_shape():
    """12 layers of 768, heads 6 and 2 of 128, MLP 2,048, vocabulary 100,278 untied, over windows of 2,048 tokens."""
    size = size_of("nano")
    assert (size.name, size.params) == ("nano", 75_528_960)
    assert size.flops_per_token == 2 * 75_528_960 + 2 * 2048 * 12 * (6 * 128) + 2 * 100_278 * 768 == 342_833_664
    assert (size.context, size.vocab_size) == (2048, 100_278)


def test_a_recipes_file(tmp_path):
    copied = tmp_path / "mine.yaml"
    copied.write_text((files("limbeck") / "recipes" / "nano.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert size_of(str(copied)).params == 75_528_960


def test_an_upcycled_students_vocabulary_is_set_as_the_error_says():
    with pytest.raises(SpecError, match=r"upcycled-tiny: student\.dense\.vocab_size is not set"):
        size_of("upcycled-tiny")
    assert size_of_recipe(load_recipe("upcycled-tiny", {"student.dense.vocab_size": 300})).vocab_size == 300


def test_a_recipe_must_say_its_vocabulary():
    recipe = load_recipe("nano")
    without = recipe.model_copy(update={"student": recipe.student.model_copy(update={"vocab_size": None})})
    with pytest.raises(SpecError, match=r"nano: student\.vocab_size is not set"):
        size_of_recipe(without)


@pytest.mark.parametrize(
    ("text", "near"),
    [("ladder-198", "ladder-198m"), ("nanno", "nano"), ("lader-1.82b", "ladder-1.82b"), ("quickstrt", "quickstart")],
)
def test_misspelt_students_come_with_the_nearest(text, near):
    with pytest.raises(SpecError, match=f"--student={text} is no number, family member, recipe or file; did you mean '{near}'"):
        size_of(text)


def test_a_file_that_is_not_there():
    with pytest.raises(SpecError, match=r"nowhere\.yaml"):
        size_of("nowhere.yaml")
