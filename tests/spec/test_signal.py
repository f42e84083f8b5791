"""Signals in recipes: names that tell them apart, and the objectives that can read them."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from limbeck.errors import SpecError
from limbeck.spec.base import Spec, parse
from limbeck.spec.load import load_recipe
from limbeck.spec.recipe import Recipe
from limbeck.spec.signal import DenseSignal, HardSignal, HybridSignal, SampledSignal, Signal, TopKSignal, TopPSignal

NAMES: list[tuple[Signal, str]] = [
    (TopKSignal(), "topk-64"),
    (TopKSignal(k=3, temperature=2.0, values="uint8"), "topk-3-t2-uint8"),
    (TopPSignal(), "topp-0.95-100"),
    (TopPSignal(p=0.5, cap=7, temperature=0.5), "topp-0.5-7-t0.5"),
    (SampledSignal(), "sampled-50"),
    (SampledSignal(draws=12, seed=3, temperature=0.7), "sampled-12-seed3-t0.7"),
    (SampledSignal(min_draws=8, full_entropy_nats=2.5), "sampled-50-min8-full2.5"),
    (SampledSignal(proposal_temperature=0.8, keep_top1=True), "sampled-50-proposal0.8-top1"),
    (HybridSignal(), "hybrid-12-16"),
    (HybridSignal(seed=1, values="uint8"), "hybrid-12-16-seed1-uint8"),
    (HardSignal(), "hard"),
    (DenseSignal(temperature=3.0), "dense-t3"),
]


def recipe_of(signal: Signal | None) -> Recipe:
    return load_recipe("quickstart").model_copy(update={"signal": signal})


@pytest.mark.parametrize(("signal", "name"), NAMES, ids=str)
def test_a_signal_is_named_by_its_kind_and_what_departs_from_the_defaults(signal: Signal, name: str) -> None:
    assert recipe_of(signal).signal_slug == name
    assert recipe_of(signal).store_path == f"out/stores/smollm2-135m-instruct-{name}"


def test_without_a_signal_there_is_no_name() -> None:
    assert recipe_of(None).signal_slug == "none"


_NUMBERS = st.one_of(st.sampled_from([0.5, 1.0, 2.0, 2.5, 0.30000000000000004, 0.3]), st.floats(1e-6, 0.999999))
_COUNTS, _SEEDS, _VALUES = st.integers(1, 120), st.integers(0, 12), st.sampled_from(["float16", "uint8"])
_SIGNALS = st.one_of(
    st.builds(TopKSignal, k=_COUNTS, temperature=_NUMBERS, values=_VALUES),
    st.builds(TopPSignal, p=st.floats(1e-6, 0.999999), cap=_COUNTS, temperature=_NUMBERS, values=_VALUES),
    st.builds(
        SampledSignal,
        draws=st.integers(60, 70),
        min_draws=st.one_of(st.none(), st.integers(1, 60)),
        full_entropy_nats=_NUMBERS,
        proposal_temperature=_NUMBERS,
        temperature=_NUMBERS,
        seed=_SEEDS,
        keep_top1=st.booleans(),
    ),
    st.builds(HybridSignal, k=_COUNTS, draws=_COUNTS, temperature=_NUMBERS, seed=_SEEDS, values=_VALUES),
    st.just(HardSignal()),
    st.builds(DenseSignal, temperature=_NUMBERS),
)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[Signal, Signal]:
    """Two signals, often of one kind that differ in a field or two."""
    one, other = draw(_SIGNALS), draw(_SIGNALS)
    if type(one) is type(other):
        kept = draw(st.sets(st.sampled_from(sorted(type(one).model_fields))))
        changed = {**other.model_dump(), **{name: getattr(one, name) for name in kept}}
        if (changed.get("min_draws") or 0) <= changed.get("draws", 0):
            other = type(one).model_validate(changed)
    return one, other


@settings(max_examples=500, deadline=None)
@given(neighbours())
def test_distinct_signals_have_distinct_names_that_are_one_folder(pair: tuple[Signal, Signal]) -> None:
    slugs = [recipe_of(signal).signal_slug for signal in pair]
    identities = [signal.model_dump(exclude={"live"}) for signal in pair]
    assert (slugs[0] == slugs[1]) == (identities[0] == identities[1])
    assert all(len(PurePosixPath(slug).parts) == 1 and " " not in slug for slug in slugs)


def test_the_last_digit_tells_two_temperatures_apart() -> None:
    assert recipe_of(TopKSignal(temperature=0.1 + 0.2)).signal_slug == "topk-64-t0.30000000000000004"
    assert recipe_of(TopKSignal(temperature=0.3)).signal_slug == "topk-64-t0.3"


def test_where_the_rows_come_from_is_not_in_the_name() -> None:
    assert recipe_of(TopKSignal(live=True)).signal_slug == recipe_of(TopKSignal()).signal_slug


def test_fewer_draws_at_least_than_at_most() -> None:
    with pytest.raises(ValidationError, match="min_draws=51 exceeds draws=50"):
        SampledSignal(min_draws=51)


@pytest.mark.parametrize(
    ("kind", "key", "most", "why"),
    [
        (SampledSignal, "draws", 65_536, "a row is stored with 65,536 ids at most; draw fewer"),
        (HybridSignal, "draws", 65_536, "a row is stored with 65,536 ids at most; draw fewer"),
        (TopKSignal, "k", 4096, "grow with their square: 4,096 at most; .* signal.kind=dense"),
        (HybridSignal, "k", 4096, "grow with their square: 4,096 at most"),
        (TopPSignal, "cap", 4096, "grow with their square: 4,096 at most"),
    ],
)
def test_what_no_row_can_hold_is_refused_before_a_teacher_runs(kind: type[Spec], key: str, most: int, why: str) -> None:
    assert getattr(parse(kind, {key: most}, source="recipe"), key) == most
    with pytest.raises(SpecError, match=rf"^recipe: {key}: {most + 1:,} .*{why}"):
        parse(kind, {key: most + 1}, source="recipe")


READABLE = {
    "forward_kl": {"topk", "topp", "sampled", "hybrid", "dense"},
    "hard": {"topk", "topp", "hybrid", "hard"},
    "ce": {"topk", "topp", "sampled", "hybrid", "hard", "dense"},
}


@pytest.mark.parametrize("kind", ["topk", "topp", "sampled", "hybrid", "hard", "dense"])
@pytest.mark.parametrize("objective", READABLE)
def test_an_objective_reads_the_signals_that_hold_what_it_needs(objective: str, kind: str) -> None:
    values = load_recipe("quickstart").model_dump()
    values |= {"objective": {"kind": objective}, "signal": {"kind": kind}}
    if kind in READABLE[objective]:
        assert Recipe.model_validate(values).signal_slug.startswith(kind)
    else:
        with pytest.raises(ValidationError, match=f"signal.kind={kind} "):
            Recipe.model_validate(values)


def test_draws_serve_hard_labels_where_they_keep_the_top_1() -> None:
    values = load_recipe("quickstart").model_dump()
    values |= {"objective": {"kind": "hard"}, "signal": {"kind": "sampled", "keep_top1": True}}
    assert Recipe.model_validate(values).signal_slug == "sampled-50-top1"


def test_an_objective_of_a_teacher_needs_one_and_its_signal() -> None:
    values = load_recipe("quickstart").model_dump()
    with pytest.raises(ValidationError, match=r"set teacher\.kind"):
        Recipe.model_validate({**values, "teacher": None, "data": {**values["data"], "tokenizer": "some"}})
    with pytest.raises(ValidationError, match=r"set signal\.kind"):
        Recipe.model_validate({**values, "signal": None})
    assert Recipe.model_validate({**values, "signal": None, "objective": {"kind": "ce"}}).signal_slug == "none"
