"""Every sentence a chip file can earn, matched whole."""

import re
from pathlib import Path

import pytest

from systolith.spec import ConfigError, SystolithError, load, read_config

NAMED = "nano, micro, mini, slice64, server, server-sram"
FIELDS = (
    "name, clock_hz, slices, arrays, array_rows, array_cols, pe_dot, array_stack, rates, weight_load_bytes, "
    "dram_bytes_per_s, dram_latency_ns, dram_bytes, dram_burst_bytes, dram_efficiency, dram_outstanding, "
    "scratchpad_bytes, banks, bank_bytes, slots_bytes, accumulator_bytes, lanes, ingress_bytes_per_s, hop_ns, "
    "topology, queue_depths, program_bytes, issue_cycles, branch_cycles, semaphore_cycles, bank_cycles, "
    "dma_cycles, normalise_cycles, fp32_add_cycles, fp32_multiply_cycles, function_cycles, convert_cycles, "
    "power_w, process"
)


def sentence(text: str) -> str:
    return f"^{re.escape(text)}$"


def test_unknown_name() -> None:
    with pytest.raises(
        ConfigError,
        match=sentence(
            f"chip 'servr' is not known (did you mean 'server'?); named chips are {NAMED}, "
            "or give the path of a .toml file."
        ),
    ):
        load("servr")
    with pytest.raises(
        SystolithError,
        match=sentence(f"chip 'xyz' is not known; named chips are {NAMED}, or give the path of a .toml file."),
    ):
        load("xyz")


def write(folder: Path, data: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(
        ConfigError,
        match=sentence(f"{path}: the chip file cannot be read (no such file or directory); check the path."),
    ):
        load(path)
    with pytest.raises(
        ConfigError, match=sentence(f"{tmp_path}: the chip file cannot be read (is a directory); check the path.")
    ):
        load(tmp_path)


FILES = [
    (b"\xff\xfe", "mine.toml: the chip file is not UTF-8 text; write it as TOML."),
    ("slices = ", "mine.toml: the chip file is not TOML: Invalid value (at end of document)."),
    (
        'base = "servers"',
        f"mine.toml: base='servers' is not known (did you mean 'server'?); named chips are {NAMED}, "
        "or give the path of a .toml file.",
    ),
    ("base = 3", f"mine.toml: base=3 must be the name of a chip, one of {NAMED}."),
    (
        'base = "nano"\nbank = 4',
        f"mine.toml: unknown field 'bank' (did you mean 'banks'?); known fields are {FIELDS}.",
    ),
    ('base = "nano"\nzzz = 4', f"mine.toml: unknown field 'zzz'; known fields are {FIELDS}."),
    (
        "clock_hz = 1000000",
        "mine.toml: missing fields array_rows, array_cols, dram_bytes_per_s, dram_latency_ns, dram_bytes, "
        "scratchpad_bytes, banks, slots_bytes, accumulator_bytes, lanes, ingress_bytes_per_s, hop_ns; "
        'write each, or start from a named chip with base = "nano".',
    ),
    (
        'base = "nano"\ndram_bytes_per_s = nan\ndram_latency_ns = 1e99999999',
        "mine.toml: dram_bytes_per_s='nan' must be a number of bytes/s, or text such as \"8 GB/s\".\n"
        "mine.toml: dram_latency_ns='1e99999999' must be a number of ns, or text such as \"20 ns\".",
    ),
]


@pytest.mark.parametrize(("data", "message"), FILES)
def test_file(tmp_path: Path, data: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=sentence(message)):
        load(write(tmp_path, data))


def test_deep_nesting_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^mine\.toml: the chip file is not TOML: .+\.$"):
        load(write(tmp_path, "slices = " + "[" * 20000 + "]" * 20000))


FIELD_FAULTS = [
    ({"slices": "two"}, "slices='two' must be a whole number."),
    ({"slices": True}, "slices=True must be a whole number."),
    ({"slices": 0}, "slices=0 must be in 1..256 (slices; each has its own memories)."),
    (
        {"arrays": 3},
        "arrays=3 must be a power of two in 1..64, for example 2 or 4 (matrix arrays, side by side along N).",
    ),
    (
        {"array_rows": 2},
        "array_rows=2 must be a power of two in 4..256, for example 4 (elements of K one pass takes).",
    ),
    (
        {"array_cols": 1000},
        "array_cols=1000 must be a power of two in 4..256, for example 256 (columns of N in one array).",
    ),
    ({"pe_dot": 6}, "pe_dot=6 must be a power of two in 4..8, for example 4 or 8 (elements of K in one PE)."),
    ({"lanes": 12}, "lanes=12 must be a power of two in 4..512, for example 8 or 16 (FP32 lanes of the vector unit)."),
    ({"banks": 2}, "banks=2 must be in 4..64 (banks of the scratchpad, each with one client at a time)."),
    (
        {"scratchpad_bytes": "64 KiBs"},
        "scratchpad_bytes='64 KiBs' must be a whole number of bytes, or text such as \"64 KiB\".",
    ),
    (
        {"scratchpad_bytes": "0.3 B"},
        "scratchpad_bytes='0.3 B' must be a whole number of bytes, or text such as \"64 KiB\".",
    ),
    ({"clock_hz": "1 kHz"}, "clock_hz='1 kHz' must be in 1 MHz..10 GHz (clock of every unit)."),
    ({"clock_hz": "fast"}, "clock_hz='fast' must be a whole number of Hz, or text such as \"500 MHz\"."),
    ({"dram_latency_ns": -1}, "dram_latency_ns=-1 must be in 0 ns..100,000 ns (request to first byte)."),
    ({"dram_bytes": "2 TiB"}, "dram_bytes='2 TiB' must be in 64 KiB..1 TiB (memory capacity)."),
    (
        {"dram_burst_bytes": 48},
        "dram_burst_bytes=48 must be a power of two in 16 B..4 KiB, for example 32 or 64 (smallest transfer, aligned).",
    ),
    ({"power_w": 0}, "power_w=0 must be in 1 W..1,000,000 W (power limit, where one is known)."),
    ({"function_cycles": 65}, "function_cycles=65 must be in 1..64 (exp2fx, rcp, rsqrt, fix of the vector unit)."),
    ({"topology": "rng"}, "topology='rng' must be one of tree, ring, mesh (did you mean 'ring'?)."),
    ({"topology": 7}, "topology=7 must be one of tree, ring, mesh."),
    ({"process": ""}, "process='' must be text of 1 to 64 printable characters."),
    ({"rates": 1}, "rates=1 must be a table with keys from E2M1xE2M1, E4M3xE2M1, INT8xE2M1, E4M3xE4M3, INT8xINT8."),
    (
        {"rates": {"E4M3xE4M4": 1}},
        "rates: unknown key 'E4M3xE4M4' (did you mean 'E4M3xE4M3'?); known keys are "
        "E2M1xE2M1, E4M3xE2M1, INT8xE2M1, E4M3xE4M3, INT8xINT8.",
    ),
    ({"rates": {"E4M3xE4M3": "1/3"}}, 'rates.E4M3xE4M3=\'1/3\' must be 1, "1/2", "1/4" or "1/8".'),
    ({"queue_depths": 4}, "queue_depths=4 must be a table with keys from W, L, M, V, S, C."),
    ({"queue_depths": {"Q": 4}}, "queue_depths: unknown key 'Q'; known keys are W, L, M, V, S, C."),
    ({"queue_depths": {"M": 1}}, "queue_depths.M=1 must be a whole number in 2..64."),
    (
        {"process": ["a" * 80]},
        "process=['" + "a" * 55 + "... must be text of 1 to 64 printable characters.",
    ),
]


@pytest.mark.parametrize(("changes", "message"), FIELD_FAULTS)
def test_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=sentence(f"nano: {message}")):
        load("nano").vary(**changes)


BOUNDS = [
    (
        {"pe_dot": 8},
        "array_rows=4 must be at least pe_dot=8; raise array_rows to 8 or write pe_dot = 4.",
    ),
    (
        {"banks": 5},
        "scratchpad_bytes=65536 must be a multiple of banks x bank_bytes = 5 x 16 = 80, for example 65520 or 65600.",
    ),
    (
        {"scratchpad_bytes": "16 KiB"},
        "scratchpad_bytes=16384 must be at least 16896: K and V tiles of 32 tokens of head size 128, each twice; "
        "raise scratchpad_bytes.",
    ),
    (
        {"lanes": 8, "bank_bytes": 16},
        "bank_bytes=16 must be at least 4 x lanes = 32, one FP32 value a lane in a cycle; "
        "raise bank_bytes or lower lanes.",
    ),
    (
        {"array_rows": 32},
        "bank_bytes=16 must be at least array_rows=32, one activation a row in a cycle; "
        "raise bank_bytes or lower array_rows.",
    ),
    (
        {"weight_load_bytes": 32},
        "weight_load_bytes=32 must be in 1..16: a byte for each array, up to every weight of the arrays in one cycle; "
        "leave it out to have it derived.",
    ),
    (
        {"array_cols": 256},
        "slots_bytes=8192 must be at least 16896: two tiles of 8-bit weights with their scales for 256 columns; "
        "raise slots_bytes, or lower arrays or array_cols.",
    ),
    (
        {"accumulator_bytes": 8200},
        "accumulator_bytes=8200 must be at least 4096 and a multiple of 4 x lanes = 16: "
        "two rows of scores and of outputs, and two sums for each of 4 columns.",
    ),
    (
        {"arrays": 16, "array_cols": 64, "slots_bytes": "1 MiB", "accumulator_bytes": 4096},
        "accumulator_bytes=4096 must be at least 8192 and a multiple of 4 x lanes = 16: "
        "two rows of scores and of outputs, and two sums for each of 1024 columns.",
    ),
    (
        {"dram_bytes": 100_000},
        "dram_bytes=100000 must be a multiple of dram_burst_bytes=64, for example 99968.",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BOUNDS)
def test_bound(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=sentence(f"nano: {message}")):
        load("nano").vary(**changes)


WARNINGS = [
    (
        "mini",
        {"weight_load_bytes": 32},
        "weight_load_bytes=32 is less than 64, twice the memory's bytes per cycle or all weights of the arrays: "
        "what piles up during a stall does not drain; raise it or leave it out.",
    ),
    (
        "server",
        {"slots_bytes": "180 KiB"},
        "slots_bytes=184320 is less than 186034, memory bytes per cycle x (latency 960 + shortest dependency stall "
        "277 cycles): weights cannot stream across layers; raise slots_bytes to 182 KiB or more.",
    ),
    (
        "server",
        {"dram_outstanding": 1024},
        "dram_outstanding=1024 bursts of 64 bytes in flight reach 109.227 GB/s of 240.625 GB/s at this latency; "
        "raise it or leave it out.",
    ),
    (
        "server-sram",
        {"accumulator_bytes": "8 KiB", "fp32_add_cycles": 16, "arrays": 1, "weight_load_bytes": 4096},
        "accumulator_bytes=8192 holds 1024 sums in each half, fewer than the 1379 in flight that memory bandwidth "
        "asks for; raise accumulator_bytes.",
    ),
    (
        "server-sram",
        {"bank_bytes": 512},
        "bank_bytes=512 is less than the memory's 1464.8 bytes per cycle: a copy into one bank runs at the bank's "
        "width; raise bank_bytes.",
    ),
    (
        "nano",
        {"ingress_bytes_per_s": "9 GB/s"},
        "bank_bytes=16 is less than the network's 18.0 bytes per cycle: arrivals run at the bank's width; "
        "raise bank_bytes.",
    ),
    (
        "nano",
        {"semaphore_cycles": 8, "queue_depths": {"M": 16}},
        "queue_depths of W, L, V, S, C times issue_cycles=1 are less than semaphore_cycles=8: a queue runs dry at "
        "each wait; raise them.",
    ),
]


@pytest.mark.parametrize(("name", "changes", "message"), WARNINGS)
def test_warning(name: str, changes: dict[str, object], message: str) -> None:
    warnings = load(name).vary(**changes).warnings
    assert f"{name}: {message}" in warnings


def test_all_faults_of_a_file_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, 'base = "nano"\nslice = 2\nbanks = 3\nlanes = "4"\n[queue_depths]\nM = 0\nQ = 1'))
    heads = ["unknown field 'slice' (", "banks=3 ", "lanes='4' ", "queue_depths.M=0 ", "queue_depths: unknown key 'Q'"]
    assert len(caught.value.faults) == len(heads)
    for fault, head in zip(caught.value.faults, heads, strict=True):
        assert fault.startswith(f"mine.toml: {head}")
    assert str(caught.value) == "\n".join(caught.value.faults)


def test_all_bounds_of_a_file_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, 'base = "nano"\nbanks = 5\npe_dot = 8\ndram_bytes = 100000'))
    assert [fault.split("=")[0] for fault in caught.value.faults] == [
        "mine.toml: array_rows",
        "mine.toml: scratchpad_bytes",
        "mine.toml: dram_bytes",
    ]


def test_read_config_raises_too() -> None:
    with pytest.raises(
        ConfigError, match=sentence("x: slices=0 must be in 1..256 (slices; each has its own memories).")
    ):
        read_config({"slices": 0}, "x", load("nano").config)
