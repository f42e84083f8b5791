"""Rounded weights against loops in float64 that know nothing of torch, and against the `gguf` package's reader and writer."""

import math
import struct

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from limbeck.errors import TeacherError
from limbeck.spec.quantisation import FP8Quantisation, GGUFQuantisation, IntegerQuantisation, quantisation_named
from limbeck.teachers.rounding import bits_per_weight, rounded

WIDTH = 512


def weights(width: int = WIDTH, *, rows: int = 12, seed: int = 0) -> torch.Tensor:
    """Rows of different scale, among them outliers, one-sided rows, and a row of zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) * torch.logspace(-3, 1, rows)[:, None]
    weight[1, 7] *= 30
    weight[2], weight[3] = weight[2].abs() + 0.01, -weight[3].abs() - 0.01
    weight[4] = 0
    return weight


def bfloat16(value: float) -> float:
    """Round to nearest even on the upper sixteen bits of a float32."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def groups(weight: torch.Tensor, size: int) -> list[tuple[int, int, list[float]]]:
    return [
        (row, start, [float(value) for value in weight[row, start : start + size]])
        for row in range(len(weight))
        for start in range(0, weight.shape[1], size)
    ]


def integers(group: list[float], *, bits: int, symmetric: bool) -> tuple[list[float], float]:
    """The values and the step, by the textbook."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step = bfloat16(max(map(abs, group)) / top) or 1.0
        return [max(-top, min(top, round(value / step))) * step for value in group], step
    top = 2**bits - 1
    low, high = min(0.0, *group), max(0.0, *group)
    step = bfloat16((high - low) / top) or 1.0
    zero = max(0, min(top, round(-low / step)))
    return [(max(0, min(top, round(value / step) + zero)) - zero) * step for value in group], step


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize(("group", "width"), [(128, 512), (32, 512), ("row", 200), (128, 200), (1000, 64)])
def test_integers_are_the_nearest_multiples(bits: int, symmetric: bool, group: int | str, width: int) -> None:
    weight = weights(width)
    scheme = IntegerQuantisation.model_validate({"bits": bits, "group": group, "symmetric": symmetric})
    found = rounded(weight, scheme)
    assert found.dtype == torch.float32
    for row, start, values in groups(weight, width if group == "row" else int(group)):
        expected, step = integers(values, bits=bits, symmetric=symmetric)
        difference = np.abs(found[row, start : start + len(values)].numpy() - np.array(expected))
        # Quotients are float32 here and float64 there: a value in the middle of two multiples may go either way.
        halfway = np.abs(np.array(values) / step % 1 - 0.5) < 1e-4
        assert (difference[~halfway] <= 1e-6 * max(map(abs, expected), default=0) + 1e-12).all()
        assert (difference[halfway] <= step * 1.001).all()


def e4m3_values() -> NDArray[np.float64]:
    """All finite e4m3 numbers: bias 7, subnormals below 2^-6, S.1111.111 is NaN."""
    positive = [
        (mantissa / 8) * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        for exponent in range(16)
        for mantissa in range(8)
        if (exponent, mantissa) != (15, 7)
    ]
    return np.array(sorted({*positive, *(-value for value in positive)}))


def test_fp8_is_the_nearest_e4m3_number() -> None:
    grid = e4m3_values()
    assert grid.max() == 448
    weight = weights(128)
    found = rounded(weight, FP8Quantisation(group=64)).double().numpy()
    for row, start, values in groups(weight, 64):
        scale = bfloat16(max(map(abs, values)) / 448) or 1.0
        scaled = np.clip(np.array(values) / scale, -448, 448)
        nearest = np.abs(scaled[:, None] - grid).min(-1)
        chosen = found[row, start : start + 64] / scale
        assert np.abs(chosen[:, None] - grid).min(-1).max() < 1e-4  # on the grid
        assert (np.abs(chosen - scaled) <= nearest + 1e-4).all()


def normal_quantiles() -> NDArray[np.float64]:
    """QLoRA's NF4 from its own construction: 8 quantiles up, 7 down, zero, scaled to 1 (appendix E of arXiv 2305.14314)."""
    from scipy.stats import norm

    offset = 0.9677083
    up = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    down = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([up, [0.0], down]))
    return levels / levels.max()


def test_nf4_is_the_nearest_quantile_of_the_normal_distribution() -> None:
    levels = normal_quantiles()
    assert len(levels) == 16
    weight = weights(128)
    found = rounded(weight, quantisation_named("nf4-g64")).double().numpy()  # type: ignore[arg-type]
    for row, start, values in groups(weight, 64):
        largest = max(map(abs, values))
        distances = np.abs(np.array(values)[:, None] - levels * largest)
        chosen = np.abs(found[row, start : start + 64] - np.array(values))
        np.testing.assert_allclose(chosen, distances.min(-1), rtol=1e-4, atol=2e-6 * largest)


def test_mxfp4_is_what_the_gguf_package_writes_and_reads() -> None:
    weight = weights(WIDTH, rows=40)
    kind = GGMLQuantizationType.MXFP4
    with np.errstate(divide="ignore"):
        expected = dequantize(quantize(weight.numpy(), kind), kind)
    found = rounded(weight, quantisation_named("mxfp4")).numpy()  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, expected)


def test_mxfp4_ties_go_to_even_and_the_largest_saturate() -> None:
    """Table of e2m1, by hand: 0, 0.5, 1, 1.5, 2, 3, 4, 6, with shared exponent 2^0 because the largest lies in [4, 8)."""
    given = [7.9, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -5.0, 0.2, 0.26, 0.0]
    expected = [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -1.0, -4.0, 0.0, 0.5, 0.0]
    found = rounded(torch.tensor([given + [0.0] * (32 - len(given))]), quantisation_named("mxfp4"))  # type: ignore[arg-type]
    assert found[0, : len(expected)].tolist() == expected


@pytest.mark.parametrize("type", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_blocks_of_32_are_the_gguf_packages(type: str) -> None:
    weight, kind = weights(), GGMLQuantizationType[type.upper()]
    with np.errstate(all="ignore"):
        expected = dequantize(quantize(weight.numpy(), kind), kind)
    scheme = GGUFQuantisation.model_validate({"type": type})
    np.testing.assert_array_equal(rounded(weight, scheme).numpy(), expected)
    size, num_bytes = GGML_QUANT_SIZES[kind]
    assert bits_per_weight(scheme, WIDTH) == 8 * num_bytes / size


F = np.float32


def half(value: np.float32) -> tuple[bytes, np.float32]:
    stored = np.float16(value)
    return stored.tobytes(), F(stored)


def qkx2(x: list[np.float32], *, nmax: int, rmin: float, nstep: int) -> tuple[np.float32, np.float32]:
    """ggml's make_qkx2_quants, number by number, without its levels: scale and minus the minimum."""
    energy = F(0)
    for v in x:
        energy += v * v
    importance = [np.sqrt(energy / F(len(x))) + abs(v) for v in x]
    low, high = min(*x, F(0)), max(x)
    if high == low:
        return F(0), -low
    sum_w = sum_x = F(0)
    for w, v in zip(importance, x, strict=True):
        sum_w, sum_x = sum_w + w, sum_x + w * v

    def levels(inverse: np.float32) -> list[np.float32]:
        return [F(min(nmax, max(0, int(np.rint(inverse * (v - low)))))) for v in x]

    def error(scale: np.float32, minimum: np.float32, codes: list[np.float32]) -> np.float32:
        total = F(0)
        for w, v, code in zip(importance, x, codes, strict=True):
            total += w * (scale * code + minimum - v) ** 2
        return total

    scale = (high - low) / F(nmax)
    best = error(scale, low, levels(F(nmax) / (high - low)))
    for step in range(nstep + 1):
        codes = levels((F(rmin) + F(0.1) * F(step) + F(nmax)) / (high - low))
        sl = sll = slx = F(0)
        for w, v, code in zip(importance, x, codes, strict=True):
            sl, sll, slx = sl + w * code, sll + w * code * code, slx + w * code * v
        determinant = sum_w * sll - sl * sl
        if determinant <= 0:
            continue
        this_scale, this_low = (sum_w * slx - sum_x * sl) / determinant, (sll * sum_x - sl * slx) / determinant
        if this_low > 0:
            this_scale, this_low = slx / sll, F(0)
        now = error(this_scale, this_low, codes)
        if now < best:
            best, scale, low = now, this_scale, this_low
    return scale, -low


def write_affine_block(x: NDArray[np.float32], *, bits: int) -> bytes:
    """A super-block of q4_k or q5_k as bytes, as ggml's quantize_row_q4_K_ref and quantize_row_q5_K_ref pack it."""
    settings = {"nmax": 15, "rmin": -1.0, "nstep": 20} if bits == 4 else {"nmax": 31, "rmin": -0.5, "nstep": 15}
    fits = [qkx2(list(x[start : start + 32]), **settings) for start in range(0, 256, 32)]  # type: ignore[arg-type]
    packed, kept = [], []
    for index in (0, 1):
        values = [fit[index] for fit in fits]
        top = max(values)
        packed.append(half(top / F(63)))
        kept.append([min(63, int(np.rint(F(63) / top * value))) if top > 0 else 0 for value in values])
    scales = bytearray(12)
    for j, (scale, minimum) in enumerate(zip(*kept, strict=True)):
        if j < 4:
            scales[j], scales[j + 4] = scale, minimum
        else:
            scales[j + 4] = (scale & 0xF) | ((minimum & 0xF) << 4)
            scales[j - 4] |= (scale >> 4) << 6
            scales[j] |= (minimum >> 4) << 6
    codes = np.zeros(256, dtype=np.int64)
    for i, value in enumerate(x):
        d, m = packed[0][1] * F(kept[0][i // 32]), packed[1][1] * F(kept[1][i // 32])
        codes[i] = min(2**bits - 1, max(0, int(np.rint((value + m) / d)))) if d else 0
    pairs = codes.reshape(4, 2, 32)
    low = bytes((pairs[:, 0] & 15 | (pairs[:, 1] & 15) << 4).astype(np.uint8).ravel())
    high = bytes(sum((codes.reshape(8, 32)[k] >> 4) << k for k in range(8)).astype(np.uint8)) if bits == 5 else b""
    return packed[0][0] + packed[1][0] + bytes(scales) + high + low


def write_q6_block(x: NDArray[np.float32]) -> bytes:
    """A super-block of q6_k as bytes, as ggml's quantize_row_q6_K_ref packs it."""

    def fit(part: NDArray[np.float32]) -> np.float32:  # make_qx_quants
        peak = max(part, key=abs)
        if abs(peak) < 1e-15:
            return F(0)
        scale, best = F(0), F(-1)
        for step in [0, *range(-9, 0), *range(1, 10)]:
            codes = [F(min(31, max(-32, int(np.rint(-(F(32) + F(0.1) * F(step)) / peak * v))))) for v in part]
            xy = xx = F(0)
            for v, code in zip(part, codes, strict=True):
                xy, xx = xy + v * v * v * code, xx + v * v * code * code
            if xx > 0 and (step == 0 or xy * xy > best * xx):
                scale = xy / xx
                best = scale * xy
        return scale

    fits = [fit(x[start : start + 16]) for start in range(0, 256, 16)]
    top = max(fits, key=abs)
    if abs(top) < 1e-15:
        return bytes(210)
    stored, d = half(F(1) / (F(-128) / top))
    scales = [min(127, int(np.rint(F(-128) / top * value))) for value in fits]
    steps = [d * F(scales[i // 16]) for i in range(256)]
    codes = np.array([min(31, max(-32, int(np.rint(v / s)))) + 32 if s else 32 for v, s in zip(x, steps, strict=True)])
    quarters = codes.reshape(2, 4, 32)
    low = np.stack([quarters[:, 0] & 15 | (quarters[:, 2] & 15) << 4, quarters[:, 1] & 15 | (quarters[:, 3] & 15) << 4], axis=1)
    high = sum((quarters[:, k] >> 4) << (2 * k) for k in range(4))
    return bytes(low.astype(np.uint8).ravel()) + bytes(high.astype(np.uint8).ravel()) + struct.pack("16b", *scales) + stored


@pytest.mark.parametrize(("type", "kind"), [("q4_k", "Q4_K"), ("q5_k", "Q5_K"), ("q6_k", "Q6_K")])
def test_k_quants_are_ggmls_reference_quantiser_byte_by_byte(type: str, kind: str) -> None:
    """Written as bytes by ggml's loops in float32 and read by the `gguf` package, which knows the layout."""
    weight = weights()
    weight[5, 32:64] = 0.125
    blocks = weight.numpy().reshape(-1, 256)
    data = [write_q6_block(block) if type == "q6_k" else write_affine_block(block, bits=int(type[1])) for block in blocks]
    expected = dequantize(np.frombuffer(b"".join(data), dtype=np.uint8).reshape(len(weight), -1), GGMLQuantizationType[kind])
    found = rounded(weight, GGUFQuantisation.model_validate({"type": type})).numpy()
    # Sums run in another order: where two fits are equally good, the other may win. That is rare, and costs nothing.
    same = np.isclose(found, expected, rtol=1e-6, atol=0).reshape(-1, 256).all(-1)
    assert same.mean() > 0.8
    errors = [((values - weight.numpy()) ** 2).reshape(-1, 256).sum(-1) for values in (found, expected)]
    np.testing.assert_allclose(errors[0][~same], errors[1][~same], rtol=0.05)


@pytest.mark.parametrize(("type", "fallback"), [("q4_k", "q5_0"), ("q5_k", "q5_1"), ("q6_k", "q8_0")])
def test_rows_of_no_whole_super_blocks_fall_back_as_in_llama_cpp(type: str, fallback: str) -> None:
    weight = weights(576)
    asked, taken = (GGUFQuantisation.model_validate({"type": each}) for each in (type, fallback))
    assert torch.equal(rounded(weight, asked), rounded(weight, taken))
    assert bits_per_weight(asked, 576) == bits_per_weight(taken, 576)
    with pytest.raises(TeacherError, match="rows of 40 weights are no whole blocks"):
        rounded(weights(40), asked)


@pytest.mark.parametrize(
    ("name", "width", "bits"),
    [
        ("int4-g128", 512, 4 + (16 + 4) / 128),
        ("int4-g128-sym", 512, 4 + 16 / 128),
        ("int4-g128", 576, 4 + 5 * (16 + 4) / 576),
        ("int8-row-sym", 512, 8 + 16 / 512),
        ("fp8-row", 512, 8 + 16 / 512),
        ("nf4-g64", 512, 4.5),
        ("mxfp4", 512, 4.25),
        ("gguf-q4_k", 512, 4.5),
        ("gguf-q6_k", 512, 6.5625),
        ("gguf-q8_0", 512, 8.5),
    ],
)
def test_bits_per_weight_count_scales_and_zero_points(name: str, width: int, bits: float) -> None:
    assert math.isclose(bits_per_weight(quantisation_named(name), width), bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["int8-row-sym", "int4-g32", "fp8-row", "nf4-g64", "mxfp4", "gguf-q8_0", "gguf-q4_1"])
def test_zero_stays_zero_and_a_second_rounding_changes_next_to_nothing(name: str) -> None:
    scheme = quantisation_named(name)
    weight = weights()
    once = rounded(weight, scheme)  # type: ignore[arg-type]
    assert once[4].eq(0).all()
    assert once.isfinite().all()
    twice = rounded(once, scheme)  # type: ignore[arg-type]
    assert float((twice - once).abs().sum() / (once - weight).abs().sum()) < 0.12
