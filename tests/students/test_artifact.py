"""Artifacts: what comes back against numpy's rounding, damage, sizes, and whether the counted code is what is needed."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import limbeck
from limbeck.errors import LimbeckError
from limbeck.spec.artifact import ArtifactFormat, QuantisationAware
from limbeck.spec.golf_student import GolfStudent
from limbeck.spec.moe_student import MoeStudent
from limbeck.spec.olmo3_student import Olmo3Student
from limbeck.spec.parts import SharedExpert
from limbeck.spec.student import Student
from limbeck.students.artifact import ArtifactSize, read_artifact, reader_files, write_artifact
from limbeck.students.build import build
from limbeck.students.decoder import Decoder
from limbeck.students.fake_quantise import quantising

VOCABULARY = 50
SIZES: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
SPECS: dict[str, Student] = {
    "golf": GolfStudent(**SIZES, intermediate_size=48, exclusive_layers=1, bigram_buckets=64, bigram_size=16),
    "moe": MoeStudent(
        **SIZES, intermediate_size=48, num_experts=4, experts_per_token=2, expert_size=24, shared_expert=SharedExpert(size=16)
    ),
    "olmo3": Olmo3Student(**SIZES, intermediate_size=48),
}
SMALL = 600
PLAIN = ArtifactFormat(small_elements=SMALL, compression="zlib")
UNCLIPPED = PLAIN.model_copy(update={"matrix_clips": (1.0,), "embedding_clip": 1.0})


def student_of(spec: Student, *, vocab_size: int = VOCABULARY) -> Decoder:
    """Every number its own, buffers included."""
    student = build(spec, vocab_size=vocab_size, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in student.state_dict().values():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    return student


def bfloat16(values: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even, by the bits of a float32."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def rounded(weight: np.ndarray, bits: int, axis: int, clip: float) -> np.ndarray:
    """float32, every row by its clip."""
    levels = 2 ** (bits - 1) - 1
    scale = bfloat16(np.quantile(np.abs(weight), clip, axis=axis, keepdims=True).astype(np.float32) / np.float32(levels))
    return np.clip(np.rint(weight / scale), -levels - 1, levels).astype(np.float32) * scale


def expected(name: str, weight: np.ndarray, form: ArtifactFormat) -> np.ndarray:
    """What an artifact holds of a tensor, told from its name."""
    axis = -2 if re.search(r"_E[DF][DF]$", name) else -1
    vectors = ("norm", "gain", "scale", "mix", "skip", "gate_D", "sink", "router", "shared_share")
    if any(part in name for part in vectors):
        return weight
    if weight.size <= form.small_elements:
        return weight.astype(np.float16).astype(np.float32)
    if re.search(r"embed|lm_head|table", name):
        return rounded(weight, 8, axis, form.embedding_clip)
    tried = np.stack([rounded(weight, 6, axis, clip) for clip in form.matrix_clips])
    best = ((tried.astype(np.float64) - weight) ** 2).sum(axis, keepdims=True).argmin(0)
    return np.take_along_axis(tried, best[None], 0)[0]


@pytest.mark.parametrize("family", SPECS)
@pytest.mark.parametrize("form", [PLAIN, UNCLIPPED])
def test_every_tensor_comes_back_as_numpy_rounds_it(family: str, form: ArtifactFormat, tmp_path: Path) -> None:
    student = student_of(SPECS[family])
    write_artifact(student, SPECS[family], tmp_path / "a", form=form)
    found, spec, vocab_size = read_artifact(tmp_path / "a")
    assert (spec, vocab_size) == (SPECS[family], VOCABULARY)
    assert found.state_dict().keys() == student.state_dict().keys()
    kinds = set()
    for name, value in student.state_dict().items():
        read, own = found.state_dict()[name].numpy(), value.numpy()
        kinds.add(len(np.unique(read)) < len(np.unique(own)))
        np.testing.assert_array_equal(read, expected(name, own, form), err_msg=name)
    assert kinds == {True, False}
    tokens = torch.arange(30).view(2, 15)
    before, after = (each.logits(each(tokens).hidden_BTD) for each in (student, found))
    assert 0 < float((before - after).detach().abs().max()) < 0.2 * float(before.detach().abs().max())


@pytest.mark.parametrize("family", SPECS)
def test_without_clips_an_artifact_holds_what_training_read(family: str, tmp_path: Path) -> None:
    student = student_of(SPECS[family])
    write_artifact(student, SPECS[family], tmp_path / "a", form=UNCLIPPED)
    read = read_artifact(tmp_path / "a")[0].state_dict()
    aware = QuantisationAware(small_elements=SMALL)
    with quantising(student, aware, lr_factor=0.0, fraction=1.0, warmup=0.0):
        inside = {name: value.clone() for name, value in student.state_dict().items()}
    changed = [name for name, value in student.state_dict().items() if not torch.equal(value, inside[name])]
    assert len(changed) > 8
    assert all(torch.equal(read[name], inside[name]) for name in changed)


def test_the_same_student_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.rand(7)
        write_artifact(student_of(SPECS["golf"]), SPECS["golf"], tmp_path / name, form=PLAIN)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_compressions_differ_in_size_alone(tmp_path: Path) -> None:
    student, sizes, read = student_of(SPECS["olmo3"]), {}, {}
    for compression in ("zlib", "lzma", "smallest"):
        form = PLAIN.model_copy(update={"compression": compression})
        sizes[compression] = write_artifact(student, SPECS["olmo3"], tmp_path / compression, form=form).weights_bytes
        assert sizes[compression] == (tmp_path / compression).stat().st_size
        read[compression] = read_artifact(tmp_path / compression)[0].state_dict()
    assert sizes["smallest"] <= min(sizes["zlib"], sizes["lzma"])
    assert sizes["zlib"] != sizes["lzma"]
    for name, value in read["smallest"].items():
        assert torch.equal(value, read["zlib"][name]) and torch.equal(value, read["lzma"][name])


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_artifact(student_of(SPECS["golf"]), SPECS["golf"], tmp_path / "golf.limbeck", form=PLAIN)
    return tmp_path / "golf.limbeck"


def test_any_byte_changed_or_cut_off_is_found(artifact: Path) -> None:
    data = artifact.read_bytes()
    flips = [0, 7, 8, 39, 40, 41, 49, 60, len(data) // 2, len(data) - 1]
    damaged = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in flips]
    damaged += [data[:at] for at in (0, 5, 8, 40, 45, len(data) // 2, len(data) - 1)] + [data + b"\0", b"PK\3\4" + bytes(100)]
    for each in damaged:
        artifact.write_bytes(each)
        with pytest.raises(LimbeckError, match=r"golf\.limbeck is damaged, or no artifact \(.*write it again"):
            read_artifact(artifact)
    with pytest.raises(LimbeckError, match="absent does not exist"):
        read_artifact(artifact.with_name("absent"))


def sealed(sections: list[bytes]) -> bytes:
    """A file whose checksum is right, whatever is in it."""
    body = b"".join(sections)
    return b"LIMBECK1" + hashlib.sha256(body).digest() + body


def section(data: bytes, *, codec: bytes = b"Z") -> bytes:
    packed = zlib.compress(data)
    return codec + len(packed).to_bytes(8, "little") + packed


def opened(data: bytes) -> list[bytes]:
    """The sections of a file, unpacked."""
    at, found = 40, []
    while at < len(data):
        length = int.from_bytes(data[at + 1 : at + 9], "little")
        assert data[at : at + 1] == b"Z"
        found.append(zlib.decompress(data[at + 9 : at + 9 + length]))
        at += 9 + length
    return found


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[list[bytes]], list[bytes]]:
    def forged(parts: list[bytes]) -> list[bytes]:
        header = json.loads(parts[0])
        change(header)
        return [section(each) for each in (json.dumps(header).encode(), *parts[1:])]

    return forged


FORGERIES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "nothing": lambda parts: [],
    "no numbers": lambda parts: [section(parts[0])],
    "a section too many": lambda parts: [section(each) for each in (*parts, b"")],
    "a section cut off": lambda parts: [*map(section, parts[:-1]), section(parts[-1])[:-3]],
    "a length beyond the end": lambda parts: [b"Z" + (2**60).to_bytes(8, "little")],
    "another codec": lambda parts: [section(each, codec=b"Q") for each in parts],
    "zlib that says it is lzma": lambda parts: [section(each, codec=b"X") for each in parts],
    "a number too few": lambda parts: [*map(section, parts[:-1]), section(parts[-1][:-4])],
    "far more numbers": lambda parts: [*map(section, parts[:-1]), section(bytes(10**7))],
    "no JSON": lambda parts: [section(b"\xff\xfe"), *map(section, parts[1:])],
    "an unknown key": with_header(lambda header: header.update(code="print()")),
    "another width": with_header(lambda header: header["student"].update(intermediate_size=64)),
    "no vocabulary": with_header(lambda header: header.update(vocab_size=0)),
    "a vocabulary beyond all memory": with_header(lambda header: header.update(vocab_size=2**61)),
    "a vocabulary beyond all numbers": with_header(lambda header: header.update(vocab_size=2**70)),
    "far more layers": with_header(lambda header: header["student"].update(num_layers=3000)),
    "a deep nest": lambda parts: [section(b"[" * 100_000), *map(section, parts[1:])],
    "a tensor too few": with_header(lambda header: header["tensors"].pop()),
    "a tensor twice": with_header(lambda header: header["tensors"].append(header["tensors"][0])),
    "a scalar of integers": with_header(
        lambda header: [each.update(kind="integers") for each in header["tensors"] if each["shape"] == [1]]
    ),
    "other kinds": with_header(lambda header: [each.update(kind="float32") for each in header["tensors"]]),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_file_with_a_right_checksum_and_wrong_contents_is_refused(artifact: Path, forgery: str) -> None:
    parts = opened(artifact.read_bytes())
    artifact.write_bytes(sealed([section(each) for each in parts]))
    read_artifact(artifact)
    artifact.write_bytes(sealed(FORGERIES[forgery](parts)))
    with pytest.raises(LimbeckError, match=r"golf\.limbeck is damaged, or no artifact"):
        read_artifact(artifact)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for value, words in ((float("nan"), "not finite"), (1e6, r"not finite \(as float16\)")):
        student = student_of(SPECS["olmo3"])
        with torch.no_grad():
            student.model.layers[0].self_attn.k_proj.weight[1, 1] = value
        with pytest.raises(LimbeckError, match=f"k_proj.weight holds weights that are {words}"):
            write_artifact(student, SPECS["olmo3"], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_over_the_limit_nothing_is_written_and_the_largest_tensors_are_named(tmp_path: Path) -> None:
    student, code = student_of(SPECS["olmo3"]), tmp_path / "code"
    (code / "inside").mkdir(parents=True)
    (code / "a.py").write_bytes(b"12345")
    (code / "inside" / "b.py").write_bytes(b"1234567")
    size = write_artifact(student, SPECS["olmo3"], tmp_path / "a", form=PLAIN, code=code)
    assert size.code_bytes == 12
    assert size.total_bytes == 12 + (tmp_path / "a").stat().st_size
    write_artifact(student, SPECS["olmo3"], tmp_path / "b", form=PLAIN, code=code, limit_bytes=size.total_bytes)
    assert (tmp_path / "b").is_file()
    with pytest.raises(LimbeckError) as caught:
        write_artifact(student, SPECS["olmo3"], tmp_path / "c", form=PLAIN, code=code, limit_bytes=size.total_bytes - 1)
    assert f"takes {size.total_bytes:,} bytes" in str(caught.value)
    assert f" 1 over the limit of {size.total_bytes - 1:,}" in str(caught.value)
    assert "lm_head.weight" in str(caught.value)
    assert not (tmp_path / "c").exists()
    assert write_artifact(student, SPECS["olmo3"], tmp_path / "d", form=PLAIN, code=code / "a.py").code_bytes == 5
    with pytest.raises(LimbeckError, match="absent does not exist"):
        write_artifact(student, SPECS["olmo3"], tmp_path / "e", code=tmp_path / "absent")


@pytest.mark.slow
def test_the_counted_code_is_what_reading_and_running_needs_no_more_and_no_less(artifact: Path, tmp_path: Path) -> None:
    root = Path(limbeck.__file__).parent
    listed = [path.relative_to(root) for path in reader_files()]
    for path in listed:
        (tmp_path / "alone" / "limbeck" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, tmp_path / "alone" / "limbeck" / path)
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom limbeck.students.artifact import read_artifact\n"
        f"student = read_artifact(Path({str(artifact)!r}))[0]\n"
        "print(float(student.logits(student(torch.arange(20)[None]).hidden_BTD).detach().double().sum()))\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'limbeck'), sep='\\n')"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "alone")},
    )
    assert found.returncode == 0, found.stderr
    logits, *loaded = found.stdout.splitlines()
    student = read_artifact(artifact)[0]
    assert float(logits) == pytest.approx(
        float(student.logits(student(torch.arange(20)[None]).hidden_BTD).detach().double().sum()), rel=1e-6
    )
    assert sorted(loaded) == sorted(str(tmp_path / "alone" / "limbeck" / path) for path in listed)


def entropy_bits(codes: np.ndarray) -> float:
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(share * np.log2(share)).sum())


@pytest.mark.slow
def test_the_golf_student_of_normal_weights_is_too_large_at_six_bits_and_fits_at_five(tmp_path: Path) -> None:
    """Rows of 512 normal weights reach to 3.1 deviations: 5.3 bits of entropy each, which no coder goes below."""
    spec = GolfStudent()
    student = build(spec, vocab_size=1024, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    assert sum(parameter.numel() for parameter in student.parameters()) == 27_354_201
    form = ArtifactFormat(compression="zlib", matrix_clips=(1.0,))

    def size(**changes: Any) -> ArtifactSize:
        return write_artifact(student, spec, tmp_path / "a", form=form.model_copy(update=changes), limit_bytes=10**9)

    six = size()
    inside = [
        p.detach().numpy()
        for name, p in student.named_parameters()
        if name.startswith("model.layers.") and p.ndim == 2 and p.numel() > 65_536
    ]
    assert sum(weight.size for weight in inside) == 25_952_256
    codes = [np.rint(weight / bfloat16(np.abs(weight).max(1, keepdims=True) / 31)) for weight in inside[:6]]
    bits = entropy_bits(np.concatenate([each.ravel() for each in codes]))
    tables = 1024 * 512 + 6144 * 128
    others = 2 * (sum(len(weight) for weight in inside) + 1024 + 6144) + 2 * 512 * 128 + 4 * 50_000
    least = 25_952_256 * bits / 8 + tables * 6.5 / 8
    assert least < six.weights_bytes < 1.01 * (25_952_256 * bits / 8) + tables + others
    with pytest.raises(LimbeckError, match=r"over the limit of 16,000,000; lower matrix_bits"):
        write_artifact(student, spec, tmp_path / "b", form=form)
    assert size(matrix_bits=5).total_bytes < 16_000_000
