"""A student in one small file, as parameter-golf counts it: the code that runs it plus its compressed weights.

Matrices are integers by rows (`limbeck.students.fake_quantise`), small ones float16, everything else (norms, gains, scales,
routers, buffers) float32. What is read is bit for bit what was rounded; same student, same bytes.

    magic (8 bytes) · SHA-256 of the rest · sections, each: codec (1 byte), length (8 bytes, little-endian), data

The first section is JSON: the student's spec, its vocabulary's size, and every tensor's name, shape and kind. Then, in the
order of `_sections`, come the numbers of all tensors of a kind. Each section is compressed by what is smallest: for rounded
weights, which have no repetitions, Huffman codes alone beat LZMA. Numbers of several bytes are stored plane by plane, since
their high bytes are alike. Nothing in a file is code, and nothing is unpacked beyond what its spec's shapes need.
"""

import ast
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

import limbeck
from limbeck.errors import LimbeckError, SpecError
from limbeck.paths import require_writable, write_atomically
from limbeck.roles import placements
from limbeck.spec.artifact import LIMIT_BYTES, ArtifactFormat
from limbeck.spec.base import Spec, parse
from limbeck.spec.student import LaidOutStudent
from limbeck.students.decoder import Decoder, empty_decoder
from limbeck.students.fake_quantise import EMBEDDINGS, MATRICES, RowCodes, as_rows, from_rows, round_rows, rounded_parameters

MAGIC = b"LIMBECK1"
NUM_LARGEST = 5
_LONGEST_HEADER = 2**26
_DTYPES = {"scales": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class ArtifactSize:
    """What counts against a limit."""

    weights_bytes: int
    """Of the file."""
    code_bytes: int
    limit_bytes: int
    code: tuple[str, ...]
    """The files whose bytes `code_bytes` are."""
    largest: tuple[tuple[str, int], ...]
    """The largest tensors and about what each takes: the entropy of its integers, one by one, and its scales."""

    @property
    def total_bytes(self) -> int:
        """Code and weights."""
        return self.code_bytes + self.weights_bytes


class _Tensor(Spec):
    name: str
    shape: tuple[int, ...]
    kind: Literal["integers", "float16", "float32"]
    bits: int = 8
    axis: Literal[-1, -2] = -1

    @model_validator(mode="after")
    def _has_rows(self) -> Self:
        if self.kind == "integers" and len(self.shape) < 2:
            raise ValueError(f"{self.name} of shape {self.shape} has no rows")
        return self


class _Header(Spec):
    student: Annotated[LaidOutStudent, Field(discriminator="kind")]
    vocab_size: PositiveInt
    tensors: tuple[_Tensor, ...]


def write_artifact(
    student: Decoder,
    spec: LaidOutStudent,
    path: Path,
    *,
    form: ArtifactFormat | None = None,
    code: Path | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> ArtifactSize:
    """Write the artifact of `student`, whose spec is `spec`; the file appears whole or not at all.

    Code is the file or folder `code`, by default `reader_files()`. Raises `LimbeckError`, and writes nothing, where code and
    weights are more than `limit_bytes`, or a weight is not finite.
    """
    require_writable(path)
    form = form or ArtifactFormat()
    files = reader_files() if code is None else _files(code)
    tensors, numbers = _pack(student, form)
    head = {
        "student": spec.model_dump(mode="json"),
        "vocab_size": len(student.head_VD),
        "tensors": [tensor.model_dump(mode="json", exclude_defaults=True) for tensor, _ in tensors],
    }
    header = json.dumps(head, sort_keys=True, separators=(",", ":")).encode("utf-8")
    sections = [header, *(numbers[name] for name in _sections([tensor for tensor, _ in tensors]))]
    body = b"".join(_compressed(section, form=form) for section in sections)
    data = [MAGIC, hashlib.sha256(body).digest(), body]
    size = ArtifactSize(
        weights_bytes=sum(map(len, data)),
        code_bytes=sum(file.stat().st_size for file in files),
        limit_bytes=limit_bytes,
        code=tuple(map(str, files)),
        largest=tuple(sorted(((tensor.name, about) for tensor, about in tensors), key=lambda pair: -pair[1])[:NUM_LARGEST]),
    )
    if size.total_bytes > limit_bytes:
        largest = ", ".join(f"{name} {about:,}" for name, about in size.largest)
        raise LimbeckError(
            f"{path} is not written: it takes {size.total_bytes:,} bytes (weights {size.weights_bytes:,}, code "
            f"{size.code_bytes:,}), {size.total_bytes - limit_bytes:,} over the limit of {limit_bytes:,}; lower matrix_bits or "
            f"embedding_bits, train a smaller student, or raise the limit (the largest tensors, in bytes: {largest})"
        )
    write_atomically(path, data)
    return size


def read_artifact(path: Path) -> tuple[Decoder, LaidOutStudent, int]:
    """The student in an artifact, its spec and its vocabulary's size; float32, on the CPU.

    Raises `LimbeckError` where the file is none, is damaged, or is of a student that this Limbeck builds differently.
    """
    try:
        return _unpacked(path.read_bytes())
    except FileNotFoundError:
        raise LimbeckError(f"{path} does not exist: name a file that `limbeck artifact write` wrote") from None
    except (_DamagedError, SpecError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise LimbeckError(
            f"{path} is damaged, or no artifact ({error}): write it again with `limbeck artifact write`"
        ) from error


class _DamagedError(Exception):
    """Why a file can't be read."""


def _pack(student: Decoder, form: ArtifactFormat) -> tuple[list[tuple[_Tensor, int]], dict[str, bytes]]:
    """Every tensor and about what it takes, and the bytes of each section."""
    rounded = rounded_parameters(student, form)
    roles = {name: placed.role for name, placed in placements(student).items()}
    parts: dict[str, list[Tensor]] = {}
    found = []
    for name, value in student.state_dict().items():
        weight, shape = value.detach().to("cpu", torch.float32), tuple(value.shape)
        if name in rounded:
            how = rounded[name]
            clips = form.matrix_clips if how.role in MATRICES else (form.embedding_clip,)
            codes = round_rows(as_rows(weight, axis=how.axis), bits=how.bits, clips=clips, least_range=form.least_range)
            tensor = _Tensor(name=name, shape=shape, kind="integers", bits=how.bits, axis=how.axis)
            kept = {f"int{how.bits}": codes.code_RI, "scales": codes.scale_R}
            about = _entropy_bytes(codes.code_RI) + codes.scale_R.nbytes
        else:
            small = roles.get(name) in (*MATRICES, *EMBEDDINGS)
            tensor = _Tensor(name=name, shape=shape, kind="float16" if small else "float32")
            kept = {tensor.kind: weight.to(_DTYPES[tensor.kind]).flatten()}
            about = kept[tensor.kind].nbytes
        if not (weight.isfinite().all() and all(each.isfinite().all() for each in kept.values())):
            raise LimbeckError(f"{name} holds weights that are not finite (as {tensor.kind}): an artifact would be of no use")
        for section, each in kept.items():
            parts.setdefault(section, []).append(each.flatten())
        found.append((tensor, about))
    return found, {section: _to_bytes(torch.cat(each)) for section, each in parts.items()}


def _sections(tensors: Sequence[_Tensor]) -> dict[str, int]:
    """The sections after the header, and how many numbers are in each."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        elements = int(np.prod(tensor.shape, dtype=np.int64))
        section = f"int{tensor.bits}" if tensor.kind == "integers" else tensor.kind
        counts[section] = counts.get(section, 0) + elements
        if tensor.kind == "integers":
            counts["scales"] = counts.get("scales", 0) + elements // tensor.shape[tensor.axis]
    return dict(sorted(counts.items()))


def _to_bytes(numbers: Tensor) -> bytes:
    """Little-endian, the lowest byte of all numbers first, then the next."""
    planes = np.frombuffer(numbers.contiguous().view(torch.uint8).numpy(), np.uint8).reshape(-1, numbers.element_size())
    return planes.T.tobytes()


def _from_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return torch.from_numpy(planes.T.copy()).flatten().view(dtype)


def _entropy_bytes(code_RI: Tensor) -> int:
    """Of the integers' frequencies alone, without the table."""
    share = torch.bincount(code_RI.flatten().int() + 128).double() / code_RI.numel()
    return int(-(torch.special.xlogy(share, share).sum() / np.log(2)) * code_RI.numel() / 8)


def _huffman(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


_PACKERS: dict[str, tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = {
    "zlib": ((b"Z", lambda data: zlib.compress(data, 9)), (b"Z", _huffman)),
    "lzma": ((b"X", lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),),
}
_PACKERS["smallest"] = _PACKERS["zlib"] + _PACKERS["lzma"]


def _compressed(data: bytes, *, form: ArtifactFormat) -> bytes:
    codec, packed = min(((codec, pack(data)) for codec, pack in _PACKERS[form.compression]), key=lambda pair: len(pair[1]))
    return codec + len(packed).to_bytes(8, "little") + packed


def _split(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(codec, data) of every section."""
    at = 0
    while at < len(body):
        start = at + 9
        end = start + int.from_bytes(body[at + 1 : start], "little")
        if end > len(body):
            raise _DamagedError("its last section is cut off")
        yield body[at : at + 1], body[start:end]
        at = end


def _decompressed(codec: bytes, data: bytes, *, most: int) -> bytes:
    """At most so many bytes; more are a fault."""
    match codec:
        case b"Z":
            found = zlib.decompressobj().decompress(data, most + 1)
        case b"X":
            found = lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(data, most + 1)
        case _:
            raise _DamagedError(f"codec {codec!r} is not known")
    if len(found) > most:
        raise _DamagedError("a section is longer than its tensors")
    return found


def _unpacked(data: bytes) -> tuple[Decoder, LaidOutStudent, int]:
    start = len(MAGIC) + 32
    if not data.startswith(MAGIC):
        raise _DamagedError("it does not begin as one")
    if hashlib.sha256(data[start:]).digest() != data[len(MAGIC) : start]:
        raise _DamagedError("its checksum is another")
    sections = list(_split(data[start:]))
    if not sections:
        raise _DamagedError("it is empty")
    header = _header(_decompressed(*sections[0], most=_LONGEST_HEADER))
    student = empty_decoder(header.student.layout, vocab_size=header.vocab_size)
    shapes = {name: tuple(value.shape) for name, value in student.state_dict().items()}
    if shapes != {tensor.name: tensor.shape for tensor in header.tensors}:
        raise _DamagedError("its tensors are not those of its student")
    weights = _weights(header.tensors, sections[1:])
    student.to_empty(device="cpu").load_state_dict(weights)
    return student, header.student, header.vocab_size


def _header(data: bytes) -> _Header:
    """Of a student that its own tensors can be: what they cannot is refused before it is built."""
    try:
        header = parse(_Header, json.loads(data), source="header")
    except RecursionError as error:
        raise _DamagedError("its header is nested too deeply") from error
    if len(header.student.layout.layers) > len(header.tensors):
        raise _DamagedError("its student has more layers than it has tensors")
    if not any(header.vocab_size in tensor.shape for tensor in header.tensors):
        raise _DamagedError("no tensor has its vocabulary's size")
    return header


def _weights(tensors: Sequence[_Tensor], sections: Sequence[tuple[bytes, bytes]]) -> dict[str, Tensor]:
    counts = _sections(tensors)
    if len(counts) != len(sections):
        raise _DamagedError(f"it has {len(sections)} sections of numbers and not {len(counts)}")
    numbers = {}
    for (name, count), (codec, packed) in zip(counts.items(), sections, strict=True):
        dtype = _DTYPES.get(name, torch.int8)
        found = _decompressed(codec, packed, most=count * dtype.itemsize)
        if len(found) != count * dtype.itemsize:
            raise _DamagedError(f"section {name} is too short")
        numbers[name] = _from_bytes(found, dtype)
    at = dict.fromkeys(counts, 0)

    def take(section: str, count: int) -> Tensor:
        at[section] += count
        return numbers[section][at[section] - count : at[section]]

    weights = {}
    for tensor in tensors:
        elements = int(np.prod(tensor.shape, dtype=np.int64))
        if tensor.kind == "integers":
            rows = elements // tensor.shape[tensor.axis]
            codes = RowCodes(take(f"int{tensor.bits}", elements).view(rows, -1), take("scales", rows))
            weights[tensor.name] = from_rows(codes.values(), tensor.shape, axis=tensor.axis)
        else:
            weights[tensor.name] = take(tensor.kind, elements).view(tensor.shape).float()
    return weights


def reader_files() -> tuple[Path, ...]:
    """Limbeck's own files that reading and running an artifact needs: this one and all that it imports, as they lie on disk."""
    root = Path(limbeck.__file__).parent
    found: dict[str, Path] = {}
    waiting = [__name__]
    while waiting:
        name = waiting.pop()
        path = _source(name, root=root)
        if path is None or name in found:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imported(path)]
    return tuple(sorted(found.values()))


def _source(module: str, *, root: Path) -> Path | None:
    """None for what is another package's, or no module but something in one."""
    package, *parts = module.split(".")
    if package != root.name:
        return None
    path = root.joinpath(*parts)
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((each for each in candidates if each.is_file()), None)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(code: Path) -> tuple[Path, ...]:
    if not code.exists():
        raise LimbeckError(f"--code={code} does not exist: name the file or folder that holds what runs the artifact")
    return (code,) if code.is_file() else tuple(sorted(each for each in code.rglob("*") if each.is_file()))
