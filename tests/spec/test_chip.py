"""A chip derived from a record: files that extend, variations, hashes, network, quantities."""

import pickle
import random
import re
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systolith.spec import (
    NAMES,
    TOPOLOGIES,
    Chip,
    ConfigError,
    format_quantity,
    load,
    network_hops,
    parse_quantity,
    read_config,
)

WHOLE = """
clock_hz = 1e9
slices = 3
array_rows = 8
array_cols = 8
dram_bytes_per_s = "10 GB/s"
dram_latency_ns = 30.5
dram_bytes = "16 MiB"
scratchpad_bytes = 143360
banks = 5
slots_bytes = "16 KiB"
accumulator_bytes = 16_384
lanes = 8
ingress_bytes_per_s = 3.2e9
hop_ns = 2.1
topology = "ring"
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(path: Path) -> tuple[str, ...]:
    try:
        load(path)
    except ConfigError as error:
        return error.faults
    return ()


def test_a_whole_file_with_an_odd_bank_count(tmp_path: Path) -> None:
    c = load(write(tmp_path, WHOLE))
    assert (c.name, c.slices, c.banks, c.bank_bytes, c.bank_rows) == ("mine", 3, 5, 32, 896)
    assert (c.dram_bytes_per_cycle, c.dram_latency_cycles) == (10, 31)
    assert (c.ingress_bytes_per_cycle, c.hop_cycles, c.network_hops) == (Fraction(16, 5), 3, 1)
    assert c.warnings == ()


@pytest.mark.parametrize("banks", [4, 5, 6, 7, 9, 11, 16])
def test_banks_need_be_no_power_of_two(banks: int) -> None:
    c = load("nano").vary(banks=banks, scratchpad_bytes=banks * 16 * 1024)
    assert c.bank_rows == 1024
    assert c.bank_size_bytes * banks == c.scratchpad_bytes


def test_a_file_extends_a_named_chip(tmp_path: Path) -> None:
    c = load(str(write(tmp_path, 'base = "server"\nslices = 63\nqueue_depths = { M = 8 }\nrates = { INT8xINT8 = 1 }')))
    server = load("server")
    assert (c.name, c.slices) == ("mine", 63)
    assert c.queue_depths == server.queue_depths._replace(M=8)
    assert c.rates == server.rates._replace(INT8xINT8=Fraction(1))
    assert c.chip_dram_bytes_per_s == 63 * Fraction(240_625_000_000)
    assert c.vary(slices=64, queue_depths={"M": 64}, rates={"INT8xINT8": "1/4"}).sha256 == server.sha256


def test_a_file_may_name_its_chip(tmp_path: Path) -> None:
    assert load(write(tmp_path, 'base = "nano"\nname = "tiny one"')).name == "tiny one"


@pytest.mark.parametrize("text", ["slices = 0x" + "f" * 9000, "slices = 1" + "0" * 3000 + ".5", f"{'k' * 9000} = 1"])
def test_monstrous_values_end_in_a_short_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, 'base = "nano"\n' + text))
    assert len(str(caught.value)) < 1000


def test_random_byte_changes_end_in_a_chip_or_a_refusal(tmp_path: Path) -> None:
    draw = random.Random(20)
    refused = 0
    for _ in range(500):
        data = bytearray(WHOLE.encode())
        for _ in range(draw.choice((1, 1, 2, 5))):
            data[draw.randrange(len(data))] = draw.choice((draw.randrange(256), draw.choice(b'0123456789.eE_"-[]= \n')))
        path = tmp_path / "mine.toml"
        path.write_bytes(data)
        faults = faults_of(path)
        refused += bool(faults)
        assert all(re.fullmatch(r"mine\.toml: .+\.", fault, re.DOTALL) for fault in faults)
    assert 300 < refused < 500


def test_numbers_of_a_file_stay_exact(tmp_path: Path) -> None:
    c = load(write(tmp_path, 'base = "nano"\ndram_bytes_per_s = 8_000_000_000.1\ndram_latency_ns = 0.1'))
    assert c.dram_bytes_per_cycle == Fraction(80_000_000_001, 10 * 500_000_000)
    assert c.dram_latency_cycles == 1


def test_hash_covers_what_changes_bits_or_cycles_and_nothing_else() -> None:
    nano = load("nano")
    assert nano.vary(name="other", process="any").sha256 == nano.sha256
    assert nano.vary(weight_load_bytes=16, bank_bytes=16, dram_outstanding=4).sha256 == nano.sha256
    changes = {
        "clock_hz": 400_000_000,
        "slices": 2,
        "dram_latency_ns": 22,
        "queue_depths": {"W": 5},
        "rates": {"INT8xINT8": "1/2"},
        "topology": "ring",
        "banks": 8,
        "function_cycles": 5,
    }
    hashes = {nano.vary(**{key: value}).sha256 for key, value in changes.items()}
    assert len(hashes | {nano.sha256}) == len(changes) + 1


def test_named_chips_differ_in_hash() -> None:
    assert len({load(name).sha256 for name in NAMES}) == len(NAMES)


def test_a_chip_travels_between_processes() -> None:
    chip = load("server")
    again: Chip = pickle.loads(pickle.dumps(chip))
    assert again == chip
    assert hash(again) == hash(chip)
    assert again.sha256 == chip.sha256
    error = pickle.loads(pickle.dumps(ConfigError(("a.", "b."))))
    assert (error.faults, str(error)) == (("a.", "b."), "a.\nb.")


def test_vary_takes_the_config_types_too() -> None:
    server = load("server")
    same = server.vary(rates=server.rates, queue_depths=server.queue_depths, slices=server.slices)
    assert same == server
    double = server.vary(dram_bytes_per_s=2 * server.config.dram_bytes_per_s)
    assert double.dram_bytes_per_cycle == 2 * server.dram_bytes_per_cycle
    assert (double.weight_load_bytes, double.dram_outstanding) == (1024, 8192)


def test_latency_is_at_least_a_cycle() -> None:
    assert load("server").vary(dram_latency_ns=0).dram_latency_cycles == 1


@pytest.mark.parametrize(
    ("topology", "slices", "hops"),
    [
        *[(t, 1, 0) for t in TOPOLOGIES],
        *[("tree", n, h) for n, h in ((2, 2), (8, 2), (9, 4), (63, 4), (64, 4), (65, 6), (256, 6))],
        *[("ring", n, h) for n, h in ((2, 1), (3, 1), (4, 2), (63, 31), (64, 32))],
        *[("mesh", n, h) for n, h in ((2, 1), (3, 2), (4, 2), (5, 3), (61, 14), (63, 14), (64, 14))],
    ],
)
def test_network_hops(topology: str, slices: int, hops: int) -> None:
    assert network_hops(topology, slices) == hops


@given(st.integers(1, 10**11), st.integers(10**6, 10**10))
def test_cycles_cover_the_time_and_no_more(tenths_of_ns: int, clock_hz: int) -> None:
    ns = Fraction(tenths_of_ns % 10**6, 10)
    chip = load("nano").vary(dram_latency_ns=ns, clock_hz=clock_hz, slots_bytes="1 GiB")
    assert chip.dram_latency_cycles == max(1, ceil(ns * clock_hz / 10**9))
    assert chip.dram_outstanding * 64 >= chip.dram_bytes_per_cycle * chip.dram_latency_cycles


@given(
    side=st.sampled_from([4, 8, 16, 32, 64]),
    arrays=st.sampled_from([1, 2, 4]),
    bandwidth=st.integers(10**8, 10**13),
    banks=st.integers(4, 16),
)
def test_derived_widths_keep_their_bounds(side: int, arrays: int, bandwidth: int, banks: int) -> None:
    row = banks * 256
    c = load("mini").vary(
        arrays=arrays,
        array_rows=side,
        array_cols=side,
        dram_bytes_per_s=bandwidth,
        banks=banks,
        bank_bytes=256,
        scratchpad_bytes=row * 64,
        slots_bytes="1 GiB",
        accumulator_bytes="1 MiB",
    )
    whole = arrays * side * side
    assert c.weight_load_bytes & (c.weight_load_bytes - 1) == 0
    assert arrays <= c.weight_load_bytes <= whole
    assert c.weight_load_bytes == whole or c.weight_load_bytes >= 2 * c.dram_bytes_per_cycle
    assert c.passes_per_block * side >= 32
    assert c.blocks_per_pass == max(1, side // 32)
    assert not [w for w in c.warnings if "weight_load_bytes" in w or "dram_outstanding" in w]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("64 KiB", "bytes", 65536),
        ("64KB", "bytes", 64000),
        ("64 kB", "bytes", 64000),
        ("3.375 GiB", "bytes", 3623878656),
        ("1 GB/s", "bytes/s", 10**9),
        ("1 GiB/s", "bytes/s", 2**30),
        ("1.6 GHz", "Hz", 1_600_000_000),
        ("1.5 us", "ns", 1500),
        ("500 ps", "ns", Fraction(1, 2)),
        ("1/4", "ratio", Fraction(1, 4)),
        (7, "bytes", 7),
        ("1 GB", "bytes/s", None),
        ("1 gb", "bytes", None),
        ("-1 KiB", "bytes", None),
        ("1/0", "ratio", None),
        (True, "bytes", None),
        (1.5, "bytes", None),
        (None, "ns", None),
    ],
)
def test_parse_quantity(text: object, kind: str, value: object) -> None:
    assert parse_quantity(text, kind) == value


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (65536, "bytes", "64 KiB"),
        (65537, "bytes", "65,537 B"),
        (3623878656, "bytes", "3.375 GiB"),
        (10**9, "bytes/s", "1 GB/s"),
        (Fraction(1, 3), "count", "0.33333"),
        (500_000_000, "Hz", "500 MHz"),
        (Fraction(41, 2), "ns", "20.5 ns"),
        (1000, "count", "1,000"),
    ],
)
def test_format_quantity(value: Fraction, kind: str, text: str) -> None:
    assert format_quantity(value, kind) == text


def test_read_config_without_base_or_defaults() -> None:
    config = read_config(
        {
            "name": "small",
            "clock_hz": 10**9,
            "array_rows": 4,
            "array_cols": 4,
            "dram_bytes_per_s": 10**9,
            "dram_latency_ns": 1,
            "dram_bytes": 2**20,
            "scratchpad_bytes": 2**16,
            "banks": 4,
            "slots_bytes": 2**13,
            "accumulator_bytes": 2**13,
            "lanes": 4,
            "ingress_bytes_per_s": 10**9,
            "hop_ns": 1,
        },
        "small",
    )
    assert (config.slices, config.pe_dot, config.queue_depths.W, config.weight_load_bytes) == (1, 4, 4, None)


def test_one_large_array_is_a_chip_too() -> None:
    """Build what published simulators are compared on: one 128x128 array at 1,600 bytes per cycle."""
    c = load("server").vary(
        slices=1,
        clock_hz=10**9,
        arrays=1,
        array_rows=128,
        array_cols=128,
        rates={"INT8xINT8": 1},
        dram_bytes_per_s=1600 * 10**9,
        scratchpad_bytes="16 MiB",
        slots_bytes="2 MiB",
        bank_bytes="2 KiB",
    )
    assert c.peak_macs_per_s("INT8xINT8") == 128 * 128 * 10**9
    assert c.weight_load_bytes == 4096
    assert c.warnings == ()
