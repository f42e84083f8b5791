"""Devices by name and by number; hours by hand."""

import pytest

from limbeck.errors import LimbeckError
from limbeck.plan.devices import DEVICES, Device, find_device, hours, sustained_flops_per_second

DATA_SHEETS = {
    "h100": (989.4e12, 80e9, 3.35e12),
    "h200": (989.4e12, 141e9, 4.8e12),
    "b200": (2250e12, 180e9, 8e12),
    "a100": (312e12, 80e9, 2.039e12),
    "l40s": (362.05e12, 48e9, 864e9),
    "a10": (125e12, 24e9, 600e9),
    "a10g": (70e12, 24e9, 600e9),
    "rtx4090": (165.2e12, 24e9, 1008e9),
    "rtx3090": (71e12, 24e9, 936e9),
    "t4": (65e12, 16e9, 320e9),
    "mi300x": (1307.4e12, 192e9, 5.3e12),
}


def test_devices_are_those_of_the_data_sheets():
    assert {each.name: (each.flops_per_second, each.memory_bytes, each.bytes_per_second) for each in DEVICES} == DATA_SHEETS
    assert all(each.source for each in DEVICES)


def test_peaks_follow_from_clocks_and_units():
    """Products per second of the tensor cores: units x FLOPs per clock x boost clock, by the architectures' white papers."""
    assert find_device("h100").flops_per_second == pytest.approx(528 * 1024 * 1.83e9, rel=1e-3)
    assert find_device("a100").flops_per_second == pytest.approx(432 * 512 * 1.41e9, rel=1e-3)
    assert find_device("rtx4090").flops_per_second == pytest.approx(512 * 128 * 2.52e9, rel=1e-3)
    assert find_device("rtx3090").flops_per_second == pytest.approx(328 * 128 * 1.695e9, rel=3e-3)
    assert find_device("t4").flops_per_second == pytest.approx(320 * 128 * 1.59e9, rel=3e-3)
    assert find_device("mi300x").flops_per_second == pytest.approx(304 * 2048 * 2.1e9, rel=1e-3)


@pytest.mark.parametrize("name", ["RTX 4090", "rtx-4090", "rtx4090", "RTX_4090"])
def test_names_are_found_in_any_spelling(name):
    assert find_device(name).name == "rtx4090"


def test_a_number_is_a_device_of_that_many_flops_per_second():
    assert find_device("3e12") == Device("3e12", 3e12, None, None, "given")


@pytest.mark.parametrize("name", ["0", "-1e12", "nan", "inf"])
def test_a_number_must_be_a_rate(name):
    with pytest.raises(LimbeckError, match="positive and finite"):
        find_device(name)


@pytest.mark.parametrize(("name", "close"), [("H10O", "h100"), ("mi300", "mi300x"), ("rtx4080", "rtx4090")])
def test_an_unknown_name_is_answered_with_the_nearest(name, close):
    with pytest.raises(LimbeckError, match=rf"{name}.*did you mean '{close}'"):
        find_device(name)


def test_hours_by_hand():
    """3.6e21 FLOPs at half of 1e15 FLOP/s on 4 devices: 1.8e6 seconds."""
    device = find_device("1e15")
    assert hours(3.6e21, device=device, utilisation=0.5, count=4) == pytest.approx(500)
    assert hours(3.6e21, device=device, utilisation=0.5) == pytest.approx(2000)
    assert sustained_flops_per_second(device, utilisation=0.25, count=2) == 5e14


@pytest.mark.parametrize(("utilisation", "count", "named"), [(0, 1, "utilisation"), (40, 1, "utilisation"), (0.4, 0, "count")])
def test_shares_and_counts_must_make_sense(utilisation, count, named):
    with pytest.raises(LimbeckError, match=named):
        hours(1e18, device=find_device("h100"), utilisation=utilisation, count=count)
