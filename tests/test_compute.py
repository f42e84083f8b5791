"""Devices and precisions: named, probed once, remembered."""

import json
from pathlib import Path

import pytest
import torch

from limbeck import compute
from limbeck.compute import autocast, pick_device, pick_dtype
from limbeck.errors import LimbeckError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_a_named_dtype_is_taken_at_its_word(name: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_seconds_per_product", probe_that_fails)
    assert pick_dtype(name, CPU) == expected


def probe_that_fails(dtype: torch.dtype) -> float:
    raise AssertionError("probed again")


@pytest.mark.parametrize(
    ("float32_seconds", "bfloat16_seconds", "expected"),
    [(1.0, 0.25, torch.bfloat16), (1.0, 1.0, torch.float32), (1.0, 0.9, torch.float32), (1.0, 5.0, torch.float32)],
)
def test_auto_takes_what_the_probe_finds_faster_and_remembers(
    float32_seconds: float, bfloat16_seconds: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 has to be worth its eight bits: a tie, or a tenth, goes to float32."""
    seconds = {torch.float32: float32_seconds, torch.bfloat16: bfloat16_seconds}
    monkeypatch.setattr(compute, "_seconds_per_product", seconds.__getitem__)
    assert pick_dtype("auto", CPU) == expected
    monkeypatch.setattr(compute, "_seconds_per_product", probe_that_fails)
    assert pick_dtype("auto", CPU) == expected


def test_another_processor_is_probed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder on a shared disk serves machines that differ."""
    monkeypatch.setattr(compute, "_seconds_per_product", {torch.float32: 4.0, torch.bfloat16: 1.0}.__getitem__)
    assert pick_dtype("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(compute, "_seconds_per_product", {torch.float32: 1.0, torch.bfloat16: 4.0}.__getitem__)
    monkeypatch.setattr(compute, "processor_name", lambda: "another processor")
    assert pick_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize("content", ["", '{"bfloat16_spee', "{}", "[1]"])
def test_a_damaged_memory_is_probed_anew(content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    monkeypatch.setattr(compute, "_seconds_per_product", {torch.float32: 4.0, torch.bfloat16: 1.0}.__getitem__)
    pick_dtype("auto", CPU)
    (remembered,) = (tmp_path / "probes").iterdir()
    remembered.write_text(content, encoding="utf-8")
    assert pick_dtype("auto", CPU) == torch.bfloat16
    assert json.loads(remembered.read_text(encoding="utf-8")) == {"bfloat16_speedup": 4.0}


def test_the_probe_measures() -> None:
    assert 0 < compute._seconds_per_product(torch.float32) < 60


def test_auto_is_a_device_that_works() -> None:
    device = pick_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize("name", ["cpuu", "no such device", "", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(LimbeckError, match=f"device={name} ") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_float32_is_left_alone_and_bfloat16_is_cast() -> None:
    left = torch.ones(2, 2)
    with autocast(torch.float32, CPU):
        assert (left @ left).dtype == torch.float32
    with autocast(torch.bfloat16, CPU):
        assert (left @ left).dtype == torch.bfloat16
    assert (left @ left).dtype == torch.float32
