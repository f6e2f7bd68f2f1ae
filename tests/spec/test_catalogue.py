"""The named chips: their record against the table they were designed from, and their derived numbers by hand."""

from fractions import Fraction

import pytest

from systolith.spec import NAMES, PAIRS, QUEUE_UNITS, QUEUES, SPACES, UNIT_QUEUES, UNITS, describe, load, rules

KI, MI, GI = 2**10, 2**20, 2**30

# slices, arrays, array side, clock, B/cycle, latency cycles, capacity, scratchpad, slots, accumulator, lanes, banks,
# ingress B/cycle, hop cycles
TABLE = {
    "nano": (1, 1, 4, 500e6, 16, 10, 32 * MI, 64 * KI, 8 * KI, 8 * KI, 4, 4, 16, 2),
    "micro": (2, 1, 8, 500e6, 16, 32, 64 * MI, 128 * KI, 16 * KI, 16 * KI, 8, 4, 16, 2),
    "mini": (4, 1, 16, 1e9, 32, 64, 256 * MI, 256 * KI, 64 * KI, 64 * KI, 16, 8, 32, 2),
    "slice64": (1, 2, 64, 1e9, 128, 600, 27 * GI // 8, 512 * KI, 512 * KI, 128 * KI, 64, 8, 160, 8),
    "server": (64, 16, 64, 1.6e9, 150.390625, 960, 27 * GI // 8, 2 * MI, 512 * KI, 512 * KI, 128, 16, 160, 8),
    "server-sram": (64, 16, 64, 1.6e9, 1464.84375, 16, 5 * MI, 2 * MI, 512 * KI, 512 * KI, 128, 16, 160, 8),
}


@pytest.mark.parametrize("name", NAMES)
def test_record(name: str) -> None:
    c = load(name)
    row = (
        *(c.slices, c.arrays, c.array_rows, c.clock_hz, c.dram_bytes_per_cycle, c.dram_latency_cycles, c.dram_bytes),
        *(c.scratchpad_bytes, c.slots_bytes, c.accumulator_bytes, c.lanes, c.banks),
        *(c.ingress_bytes_per_cycle, c.hop_cycles),
    )
    assert row == TABLE[name]
    assert c.array_cols == c.array_rows
    assert c.name == name


@pytest.mark.parametrize("name", NAMES)
def test_named_chips_have_nothing_to_warn_of(name: str) -> None:
    assert load(name).warnings == ()


# peak of E2M1xE2M1 and of E4M3xE4M3 in FLOP/s; memory bandwidth of the chip in bytes/s
PEAKS = {
    "nano": (2 * 16 * 500e6, 2 * 16 * 500e6, 8e9),
    "micro": (2 * 2 * 64 * 500e6, 2 * 2 * 64 * 500e6, 16e9),
    "mini": (2 * 4 * 256 * 1e9, 2 * 4 * 256 * 1e9, 128e9),
    "slice64": (2 * 2 * 4096 * 1e9, 2 * 2 * 1024 * 1e9, 128e9),
    "server": (13.4217728e15, 3.3554432e15, 15.4e12),
    "server-sram": (13.4217728e15, 3.3554432e15, 150e12),
}


@pytest.mark.parametrize("name", NAMES)
def test_peaks(name: str) -> None:
    c = load(name)
    four, eight, bandwidth = PEAKS[name]
    assert c.peak_flops("E2M1xE2M1") == four
    assert c.peak_flops("E4M3xE4M3") == c.peak_flops("INT8xINT8") == eight
    assert c.chip_dram_bytes_per_s == bandwidth
    assert c.balance("E2M1xE2M1") == Fraction(four) / Fraction(bandwidth)


def test_rates_of_mixed_pairs() -> None:
    assert {load("server").rate(p) for p in ("E4M3xE2M1", "INT8xE2M1")} == {Fraction(1, 2)}
    assert {load(n).rate(p) for n in ("nano", "micro", "mini") for p in PAIRS} == {1}


def test_server_by_hand() -> None:
    c = load("server")
    assert c.dram_bytes_per_cycle == Fraction(9625, 64)
    assert c.chip_dram_bytes == 216 * GI
    assert c.chip_sram_bytes == 192 * MI
    assert c.macs_per_cycle == 16 * 64 * 64
    assert c.columns == 1024
    assert (c.pe_rows, c.array_skew_cycles) == (8, 72)
    assert (c.passes_per_block, c.blocks_per_pass) == (1, 2)
    assert c.weight_load_bytes == 512  # the power of two above 2 x 150.4
    assert c.dram_outstanding == 4096  # above 150.4 x 960 / 64 = 2,256
    assert (c.bank_bytes, c.bank_size_bytes, c.bank_rows) == (512, 128 * KI, 256)
    assert c.accumulator_words == 128 * KI
    assert c.accumulator_chains == 36  # 4 cycles x 150.39 / 17 = 35.4
    assert c.log2_lanes == 7
    assert (c.network_hops, c.network_latency_cycles) == (4, 32)  # 64 slices: two levels of 8, up and down
    assert c.slots_cover_cycles == 3486 - 960  # 512 KiB / 150.39
    assert c.stall_cycles == 2 * (2 + 72 + 3 + 4) + 2 * (4 + 4 + 4) + 7 * 4 + 12 + 3 + 32 + 4 * 4
    assert (c.power_w, c.process) == (700, "TSMC N3P")
    assert [c.queue_depth(q) for q in QUEUES] == [16, 16, 64, 64, 16, 16]
    assert c.seconds(16) == Fraction(1, 10**8)


def test_nano_by_hand() -> None:
    c = load("nano")
    assert (c.pe_rows, c.array_skew_cycles) == (1, 5)
    assert (c.passes_per_block, c.blocks_per_pass) == (8, 1)
    assert c.weight_load_bytes == 16  # every weight of the array in one cycle
    assert (c.bank_bytes, c.bank_rows) == (16, 1024)
    assert c.dram_outstanding == 4
    assert c.accumulator_chains == 2
    assert (c.network_hops, c.network_latency_cycles) == (0, 0)
    assert {c.queue_depth(q) for q in QUEUES} == {4}
    assert c.slots_cover_cycles == 512 - 10


def test_sram_chip_is_the_server_with_another_memory() -> None:
    c = load("server-sram")
    assert c.dram_bytes + c.scratchpad_bytes + c.slots_bytes + c.accumulator_bytes == 8 * MI
    assert c.weight_load_bytes == 4096
    assert c.accumulator_chains == 345  # 4 x 1,464.84 / 17 = 344.7
    assert c.slots_cover_cycles == 357 - 16
    assert c.peak_flops("E2M1xE2M1") == load("server").peak_flops("E2M1xE2M1")


def test_units_and_queues_name_each_other() -> None:
    assert set(QUEUE_UNITS) == set(QUEUES)
    assert set(UNIT_QUEUES) == set(UNITS)
    assert all(queue in UNIT_QUEUES[unit] for queue, unit in QUEUE_UNITS.items())


def test_space_bytes() -> None:
    c = load("nano")
    assert [c.space_bytes(s) for s in SPACES] == [32 * MI, 64 * KI, 8 * KI, 8 * KI, 256]


@pytest.mark.parametrize("name", NAMES)
def test_describe_has_every_field_and_every_peak(name: str) -> None:
    chip = load(name)
    rows = {row.field: row for row in describe(chip)}
    assert len(rows) == len(describe(chip))
    written = {field.partition(".")[0] for field, row in rows.items() if not row.derived}
    absent = {"power_w", "process"} if chip.power_w is None else set()
    assert written == set(rules()) - absent
    assert rows["sha256"].value == chip.sha256
    for pair in PAIRS:
        assert rows[f"peak_flops.{pair}"].value == chip.peak_flops(pair)


def test_describe_reads_well() -> None:
    text = {row.field: row.text for row in describe(load("server"))}
    assert text["clock_hz"] == "1.6 GHz"
    assert text["dram_bytes_per_s"] == "240.625 GB/s"
    assert text["dram_bytes"] == "3.375 GiB"
    assert text["rates.E4M3xE2M1"] == "1/2"
    assert text["issue_cycles"] == "1 cycle"
    assert text["semaphore_cycles"] == "4 cycles"
    assert text["peak_flops.E2M1xE2M1"] == "13.4218 PFLOP/s"
    assert text["chip_dram_bytes_per_s"] == "15.4 TB/s"
    assert text["chip_dram_bytes"] == "216 GiB"
    assert text["balance.E2M1xE2M1"] == "871.544 FLOP/byte"
    assert text["power_w"] == "700 W"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pair", PAIRS)
def test_memory_binds_at_one_row_but_for_four_bits_on_nano(name: str, pair: str) -> None:
    c = load(name)
    bits = 4 if pair.endswith("E2M1") else 8
    brought = float(c.dram_bytes_per_cycle) / (bits / 8 + 1 / 32)
    assert float(c.memory_weights_per_cycle(pair)) == pytest.approx(brought)
    # nano: 16 bytes a cycle bring 30.1 weights of 4 bits, and 16 PEs use 16; of 8 bits they bring 15.5.
    assert c.binds_at_one_row(pair) == ("array" if name == "nano" and bits == 4 else "memory")


def test_what_binds_is_written_out() -> None:
    row = {row.field: row for row in describe(load("nano"))}["binds_at_one_row.E2M1xE2M1"]
    assert (row.value, row.text) == ("array", "array")
    assert row.note == "at one row: memory brings 30.1176 weights per cycle, the arrays use 16"
