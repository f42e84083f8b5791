"""Every quantisation has a name of its own, which can be read back; what makes no sense cannot be written down."""

import itertools
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from limbeck.errors import SpecError
from limbeck.spec.base import parse
from limbeck.spec.load import parse_overrides
from limbeck.spec.overrides import apply_overrides
from limbeck.spec.quantisation import Quantisation, quantisation_named
from limbeck.spec.recipe import Recipe
from limbeck.spec.teacher import GGUFTeacher, HuggingFaceTeacher, SmolLM2Teacher

ADAPTER: TypeAdapter[Quantisation] = TypeAdapter(Quantisation)
GROUPS = [32, 64, 128, "row"]
ENDS = [True, False]
TYPES = ["q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0"]


def every_scheme() -> list[dict[str, Any]]:
    integers = itertools.product([8, 6, 5, 4, 3, 2], GROUPS, [True, False], ENDS)
    simulated = [
        *({"kind": "integer", "bits": b, "group": g, "symmetric": s, "embeddings_and_head": e} for b, g, s, e in integers),
        *({"kind": k, "group": g, "embeddings_and_head": e} for k, g, e in itertools.product(["fp8", "nf4"], GROUPS, ENDS)),
        *({"kind": "mxfp4", "embeddings_and_head": e} for e in ENDS),
        *({"kind": "gguf", "type": t, "embeddings_and_head": e} for t, e in itertools.product(TYPES, ENDS)),
    ]
    packaged = [
        *({"kind": "bitsandbytes", "values": v, "double": d} for v, d in itertools.product(["nf4", "fp4"], [True, False])),
        {"kind": "bitsandbytes", "values": "int8"},
        {"kind": "torchao", "bits": 8},
        *({"kind": "torchao", "bits": 4, "group": g} for g in (32, 64, 128, 256)),
    ]
    return simulated + packaged


def test_no_two_schemes_share_a_name_and_every_name_is_read_back() -> None:
    schemes = [ADAPTER.validate_python(values) for values in every_scheme()]
    assert len({scheme.slug for scheme in schemes}) == len(schemes) == 6 * 4 * 2 * 2 + 16 + 2 + 16 + 5 + 5
    for scheme in schemes:
        assert quantisation_named(scheme.slug) == scheme


def test_names_are_what_the_documentation_says() -> None:
    assert ADAPTER.validate_python({"kind": "integer", "bits": 4}).slug == "int4-g128"
    assert ADAPTER.validate_python({"kind": "integer", "bits": 8, "group": "row", "symmetric": True}).slug == "int8-row-sym"
    assert ADAPTER.validate_python({"kind": "mxfp4", "embeddings_and_head": True}).slug == "mxfp4-all"


@pytest.mark.parametrize(
    "name",
    (
        ",int4,int7-g128,int4-g0,int4-gx,int4-128,int4-g128-asym,INT4-g128,nf4,mxfp4-g32,q4_k,gguf-q2_k,bnb-int8-double,"
        "bnb-nf4-all,bnb-int4,torchao-int8,torchao-int4-row,torchao-int8-g32,int4-g128-all-all"
    ).split(","),
)
def test_other_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(SpecError, match="names no quantisation"):
        quantisation_named(name)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "integer", "bits": 7},
        {"kind": "integer", "bits": 4, "group": 0},
        {"kind": "integer"},
        {"kind": "mxfp4", "group": 32},
        {"kind": "gguf", "type": "q2_k"},
        {"kind": "bitsandbytes", "values": "int8", "double": True},
        {"kind": "torchao", "bits": 8, "group": 128},
        {"kind": "torchao", "bits": 4},
    ],
)
def test_nonsense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(values)


@pytest.mark.parametrize(
    ("teacher", "slug"),
    [
        (SmolLM2Teacher, "smollm2-135m-instruct"),
        (lambda **more: HuggingFaceTeacher(model="allenai/Olmo-3-1025-7B", **more), "olmo-3-1025-7b"),
        (lambda **more: GGUFTeacher(path="models/Tiny-F16.gguf", **more), "tiny-f16"),
    ],
)
def test_a_quantised_teacher_has_a_folder_of_its_own(teacher: Any, slug: str) -> None:
    plain, quantised = teacher(), teacher(quantisation={"kind": "nf4"})
    assert (plain.slug, quantised.slug) == (slug, f"{slug}-nf4-g64")
    assert plain.model_slug == quantised.model_slug == slug


def test_a_recipe_says_it_by_overrides_and_its_store_moves(values: dict[str, Any]) -> None:
    def store(*arguments: str) -> str:
        return parse(Recipe, apply_overrides(values, parse_overrides(arguments)), source="test").store_path

    kind = "teacher.quantisation.kind=integer"
    paths = [
        store(),
        store(kind, "teacher.quantisation.bits=4"),
        store(kind, "teacher.quantisation.bits=4", "teacher.quantisation.group=32"),
        store(kind, "teacher.quantisation.bits=4", "teacher.quantisation.group=row"),
        store(kind, "teacher.quantisation.bits=8"),
    ]
    assert len(set(paths)) == len(paths)
    with pytest.raises(SpecError, match=r"teacher\.quantisation\.grup is not a key; did you mean 'group'"):
        store(kind, "teacher.quantisation.bits=4", "teacher.quantisation.grup=32")


def test_a_recipe_says_it_by_name_as_well(values: dict[str, Any]) -> None:
    def recipe(*arguments: str) -> Recipe:
        return parse(Recipe, apply_overrides(values, parse_overrides(arguments)), source="test")

    for name in ("int4-g128", "mxfp4", "gguf-q4_k-all", "bnb-nf4-double"):
        teacher = recipe(f"teacher.quantisation={name}").teacher
        assert teacher is not None
        assert teacher.quantisation == quantisation_named(name)
    by_keys = recipe("teacher.quantisation={kind: integer, bits: 4, group: 32}")
    assert recipe("teacher.quantisation=int4-g32") == by_keys
    assert recipe("teacher.quantisation=null").teacher.quantisation is None  # type: ignore[union-attr]
    with pytest.raises(
        SpecError, match=r"^test: teacher\.quantisation: 'int4' names no quantisation; did you mean 'int4-g128'"
    ):
        recipe("teacher.quantisation=int4")
