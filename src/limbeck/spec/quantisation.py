"""To how few bits a teacher's weights are rounded, and how.

A scheme has one name, its slug, which goes into folders, stores and tables: `int4-g128` is four bits with a scale for every 128
weights along the input, `int8-row-sym` is eight bits with one scale a row and no zero point, `-all` at the end includes the
embedding and the head. `quantisation_named` reads the name back.

Simulated schemes (`integer`, `fp8`, `nf4`, `mxfp4`, `gguf`) round the weights and compute as before: they have the error of a
quantised teacher without its speed or memory. `bitsandbytes` and `torchao` are the packages themselves.
"""

import re
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from limbeck.errors import SpecError
from limbeck.spec.base import Spec, nearest

Group = PositiveInt | Literal["row"]
"""Neighbours along the input that share a scale, or a whole row. The last group of a row may be shorter."""
GGUFType = Literal["q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0"]
ALL = "-all"


class _Simulated(Spec):
    embeddings_and_head: bool = False
    """Also the embedding and the head, which otherwise stay as they are. A router of experts always does."""

    simulated: ClassVar[bool] = True
    """Whether the weights are rounded and then computed with as before."""

    @property
    def _all(self) -> str:
        return ALL if self.embeddings_and_head else ""


class IntegerQuantisation(_Simulated):
    """Round to nearest integer, with a 16-bit scale a group, and a zero point unless `symmetric`."""

    kind: Literal["integer"] = "integer"
    bits: Literal[8, 6, 5, 4, 3, 2]
    group: Group = 128
    symmetric: bool = False

    @property
    def slug(self) -> str:
        """`int4-g128`, `int8-row-sym`."""
        return f"int{self.bits}-{_group(self.group)}{'-sym' if self.symmetric else ''}{self._all}"


class FP8Quantisation(_Simulated):
    """Eight-bit floats with four exponent and three mantissa bits (e4m3, arXiv 2209.05433), with a 16-bit scale a group."""

    kind: Literal["fp8"] = "fp8"
    group: Group = "row"

    @property
    def slug(self) -> str:
        """`fp8-row`."""
        return f"fp8-{_group(self.group)}{self._all}"


class NF4Quantisation(_Simulated):
    """The sixteen quantiles of a normal distribution, scaled by a group's largest weight (QLoRA, arXiv 2305.14314)."""

    kind: Literal["nf4"] = "nf4"
    group: Group = 64

    @property
    def slug(self) -> str:
        """`nf4-g64`."""
        return f"nf4-{_group(self.group)}{self._all}"


class MXFP4Quantisation(_Simulated):
    """Four-bit floats (e2m1) in blocks of 32 that share a power of two (OCP Microscaling Formats 1.0)."""

    kind: Literal["mxfp4"] = "mxfp4"

    @property
    def slug(self) -> str:
        """`mxfp4`."""
        return f"mxfp4{self._all}"


class GGUFQuantisation(_Simulated):
    """A block type of GGUF files. A k-quant takes rows of a multiple of 256; others fall back as llama.cpp's quantiser does."""

    kind: Literal["gguf"] = "gguf"
    type: GGUFType

    @property
    def slug(self) -> str:
        """`gguf-q4_k`."""
        return f"gguf-{self.type}{self._all}"


class BitsAndBytesQuantisation(Spec):
    """The package bitsandbytes: LLM.int8 (which also rounds activations, but for outliers), or four-bit weights by 64."""

    kind: Literal["bitsandbytes"] = "bitsandbytes"
    values: Literal["int8", "nf4", "fp4"] = "nf4"
    double: bool = False
    """Round the scales of four-bit weights as well."""

    @model_validator(mode="after")
    def _int8_has_no_double(self) -> Self:
        if self.double and self.values == "int8":
            raise ValueError("double=true is for values=nf4 and fp4: int8 has one scale a row")
        return self

    simulated: ClassVar[bool] = False

    @property
    def slug(self) -> str:
        """`bnb-nf4-double`."""
        return f"bnb-{self.values}{'-double' if self.double else ''}"


class TorchAOQuantisation(Spec):
    """The package torchao, weights only: eight bits with one scale a row, or four (CUDA and bfloat16 only) with one a group."""

    kind: Literal["torchao"] = "torchao"
    bits: Literal[8, 4] = 8
    group: Group = "row"

    @model_validator(mode="after")
    def _group_has_a_kernel(self) -> Self:
        if self.bits == 8 and self.group != "row":
            raise ValueError(f"group={self.group} is for bits=4: torchao's eight-bit weights have one scale a row")
        if self.bits == 4 and self.group not in (32, 64, 128, 256):
            raise ValueError(f"group={self.group} has no kernel in torchao: set group to 32, 64, 128 or 256")
        return self

    simulated: ClassVar[bool] = False

    @property
    def slug(self) -> str:
        """`torchao-int4-g128`."""
        return f"torchao-int{self.bits}-{_group(self.group)}"


Simulated = IntegerQuantisation | FP8Quantisation | NF4Quantisation | MXFP4Quantisation | GGUFQuantisation
Quantisation = Annotated[
    IntegerQuantisation
    | FP8Quantisation
    | NF4Quantisation
    | MXFP4Quantisation
    | GGUFQuantisation
    | BitsAndBytesQuantisation
    | TorchAOQuantisation,
    Field(discriminator="kind"),
]
EXAMPLES = ["int8-row-sym", "int4-g128", "fp8-row", "nf4-g64", "mxfp4", "gguf-q4_k", "bnb-nf4-double", "torchao-int8-row"]


def quantisation_named(name: str) -> Quantisation:
    """The scheme of that slug; `SpecError` where it is none."""
    body, everything = name.removesuffix(ALL), name.endswith(ALL)
    found: Quantisation | None = None
    try:
        found = _packaged(body) if not everything else None
        found = found or _simulated(body, everything)
    except ValueError:  # what pydantic raises, and `SpecError` is not
        found = None
    if found is None or found.slug != name:
        raise SpecError(f"{name!r} names no quantisation{nearest(name, EXAMPLES)}, bits and groups are free")
    return found


def _simulated(body: str, everything: bool) -> Simulated | None:
    match body.split("-"):
        case [format, group] if format in ("fp8", "nf4"):
            kind = FP8Quantisation if format == "fp8" else NF4Quantisation
            return kind(group=_read_group(group), embeddings_and_head=everything)
        case ["mxfp4"]:
            return MXFP4Quantisation(embeddings_and_head=everything)
        case ["gguf", type] if type in get_args(GGUFType):
            return GGUFQuantisation.model_validate({"type": type, "embeddings_and_head": everything})
        case [format, group, *sign] if re.fullmatch(r"int\d", format) and sign in ([], ["sym"]):
            values = {"bits": int(format[3:]), "group": _read_group(group), "symmetric": bool(sign)}
            return IntegerQuantisation.model_validate({**values, "embeddings_and_head": everything})
        case _:
            return None


def _packaged(body: str) -> BitsAndBytesQuantisation | TorchAOQuantisation | None:
    match body.split("-"):
        case ["bnb", values, *double] if double in ([], ["double"]):
            return BitsAndBytesQuantisation.model_validate({"values": values, "double": bool(double)})
        case ["torchao", format, group] if re.fullmatch(r"int\d", format):
            return TorchAOQuantisation.model_validate({"bits": int(format[3:]), "group": _read_group(group)})
        case _:
            return None


def _group(group: Group) -> str:
    return "row" if group == "row" else f"g{group}"


def _read_group(text: str) -> Group:
    return "row" if text == "row" else int(text.removeprefix("g"))
