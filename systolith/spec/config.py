"""`ChipConfig`: what a person writes. Few fields, in bytes, bytes/s, nanoseconds, hertz; `chip.Chip` derives the rest.

A field's rule stands beside it: kind, range, and what breaks outside it. `read_config` turns a mapping (a TOML file)
into a config and lists every fault at once; a key it does not know is a fault that names the known ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from typing import Annotated, Any, Final, NamedTuple, get_args, get_type_hints

from .errors import ConfigError
from .limits import DRAM_ADDRESS_BITS
from .quantity import SCALES, format_quantity, parse_quantity
from .units import PAIRS, QUEUES, TOPOLOGIES

__all__ = ["ChipConfig", "PairRates", "QueueDepths", "Rule", "nearest", "read_config", "rules"]

_KI: Final = 1024
_MI: Final = 1024**2
_GI: Final = 1024**3


class QueueDepths(NamedTuple):
    """Instructions each queue holds, 2..64. Fewer than 2 and nothing overlaps; copied descriptors are flip-flops."""

    W: int = 4
    L: int = 4
    M: int = 4
    V: int = 4
    S: int = 4
    C: int = 4


class PairRates(NamedTuple):
    """Multiply-adds per cycle of each pair (activations x weights) over the number of PE positions: 1, 1/2, 1/4 or 1/8.

    A pass of a pair with rate r holds the array for 1/r cycles a row. Other values have no such pass.
    """

    E2M1xE2M1: Fraction = Fraction(1)
    E4M3xE2M1: Fraction = Fraction(1)
    INT8xE2M1: Fraction = Fraction(1)
    E4M3xE4M3: Fraction = Fraction(1)
    INT8xINT8: Fraction = Fraction(1)


@dataclass(frozen=True)
class Rule:
    """What a field may hold.

    kind: a key of `quantity.SCALES`, or "count", "cycles", "share", "text", "topology", "rates", "depths".
    whole: only whole numbers of the base unit. power: only powers of two. low, high: inclusive, in the base unit.
    """

    kind: str
    low: int = 0
    high: int = 0
    note: str = ""
    power: bool = False
    whole: bool = True


_CYCLES: Final = (1, 64)
FULL_RATES: Final = PairRates()
SHALLOW_QUEUES: Final = QueueDepths()


@dataclass(frozen=True, kw_only=True)
class ChipConfig:
    """One chip as a person writes it. Sizes and rates are per slice unless the name says otherwise."""

    name: Annotated[str, Rule("text", note="name in results")]
    clock_hz: Annotated[int, Rule("Hz", 10**6, 10**10, "clock of every unit")]
    slices: Annotated[int, Rule("count", 1, 256, "slices; each has its own memories")] = 1

    arrays: Annotated[int, Rule("count", 1, 64, "matrix arrays, side by side along N", power=True)] = 1
    array_rows: Annotated[int, Rule("count", 4, 256, "elements of K one pass takes", power=True)]
    array_cols: Annotated[int, Rule("count", 4, 256, "columns of N in one array", power=True)]
    pe_dot: Annotated[int, Rule("count", 4, 8, "elements of K in one PE", power=True)] = 4
    array_stack: Annotated[
        int,
        Rule("count", 1, 64, "most arrays that stand on each other along K, for products of few columns", power=True),
    ] = 1
    rates: Annotated[PairRates, Rule("rates", note="share of the PEs' peak for each pair")] = FULL_RATES
    weight_load_bytes: Annotated[
        int | None,
        Rule("bytes", 1, 4 * _MI, "weight code bytes a cycle into the arrays; derived if absent", power=True),
    ] = None

    dram_bytes_per_s: Annotated[Fraction, Rule("bytes/s", 10**6, 10**14, "memory bandwidth", whole=False)]
    dram_latency_ns: Annotated[Fraction, Rule("ns", 0, 10**5, "request to first byte", whole=False)]
    dram_bytes: Annotated[int, Rule("bytes", 64 * _KI, 2**DRAM_ADDRESS_BITS, "memory capacity")]
    dram_burst_bytes: Annotated[int, Rule("bytes", 16, 4 * _KI, "smallest transfer, aligned", power=True)] = 64
    dram_efficiency: Annotated[
        Fraction, Rule("share", note="share of dram_bytes_per_s left by refresh and row misses, in timing only")
    ] = Fraction(1)
    dram_outstanding: Annotated[
        int | None, Rule("count", 1, 65536, "bursts in flight per DMA queue; derived if absent")
    ] = None

    scratchpad_bytes: Annotated[int, Rule("bytes", _KI, _GI, "software-managed SRAM")]
    banks: Annotated[int, Rule("count", 4, 64, "banks of the scratchpad, each with one client at a time")]
    bank_bytes: Annotated[
        int | None, Rule("bytes", 16, 16 * _KI, "one row of a bank, read or written in a cycle", power=True)
    ] = None
    slots_bytes: Annotated[int, Rule("bytes", _KI, _GI, "weight slots")]
    accumulator_bytes: Annotated[int, Rule("bytes", 4 * _KI, _GI, "FP32 accumulator memory")]
    lanes: Annotated[int, Rule("count", 4, 512, "FP32 lanes of the vector unit", power=True)]

    ingress_bytes_per_s: Annotated[
        Fraction, Rule("bytes/s", 10**6, 10**14, "network into (and out of) a slice", whole=False)
    ]
    hop_ns: Annotated[Fraction, Rule("ns", 0, 10**4, "one hop of the network", whole=False)]
    topology: Annotated[str, Rule("topology", note="shape of the network: tree (of 8), ring or mesh")] = "tree"

    queue_depths: Annotated[QueueDepths, Rule("depths", note="instructions each queue holds")] = SHALLOW_QUEUES
    program_bytes: Annotated[int, Rule("bytes", 4 * _KI, 16 * _MI, "program memory of the sequencer")] = 64 * _KI
    issue_cycles: Annotated[int, Rule("cycles", *_CYCLES, "sequencer, from one instruction to the next")] = 1
    branch_cycles: Annotated[int, Rule("cycles", *_CYCLES, "sequencer, a taken branch or loop exit more")] = 2
    semaphore_cycles: Annotated[int, Rule("cycles", *_CYCLES, "post in one queue to go in another")] = 2
    bank_cycles: Annotated[int, Rule("cycles", *_CYCLES, "address to data of a scratchpad bank")] = 1
    dma_cycles: Annotated[int, Rule("cycles", *_CYCLES, "head of queue to first memory request")] = 4
    normalise_cycles: Annotated[int, Rule("cycles", *_CYCLES, "exact block sum to FP32")] = 2
    fp32_add_cycles: Annotated[int, Rule("cycles", *_CYCLES, "FP32 adder, anywhere")] = 2
    fp32_multiply_cycles: Annotated[int, Rule("cycles", *_CYCLES, "FP32 multiplier, anywhere")] = 2
    function_cycles: Annotated[int, Rule("cycles", *_CYCLES, "exp2fx, rcp, rsqrt, fix of the vector unit")] = 4
    convert_cycles: Annotated[int, Rule("cycles", *_CYCLES, "FP32 to an MX block, after its largest")] = 2

    power_w: Annotated[Fraction | None, Rule("W", 1, 10**6, "power limit, where one is known", whole=False)] = None
    process: Annotated[str | None, Rule("text", note="process, where one is known")] = None


def rules() -> dict[str, Rule]:
    """Return the rule of each field, in the order of the record."""
    return dict(_RULES)


_RULES: Final[dict[str, Rule]] = {
    name: get_args(hint)[1] for name, hint in get_type_hints(ChipConfig, include_extras=True).items()
}


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """Return " (did you mean 'x'?)" for the known word nearest to `word`, or nothing where none is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def read_config(raw: Mapping[str, object], where: str, base: ChipConfig | None = None) -> ChipConfig:
    """Build a config from a mapping of field names, on top of `base` where there is one.

    where : the name or file that each sentence begins with.
    Raises ConfigError with every fault: unknown key, wrong type, out of range, missing field.
    """
    config, faults = try_config(raw, where, base)
    if faults or config is None:
        raise ConfigError(faults)
    return config


def try_config(
    raw: Mapping[str, object], where: str, base: ChipConfig | None = None
) -> tuple[ChipConfig | None, list[str]]:
    """Do as `read_config`, but return the faults (and then no config) instead of raising."""
    values: dict[str, Any] = {f.name: getattr(base, f.name) for f in fields(ChipConfig)} if base else {}
    faults: list[str] = []
    for key, value in raw.items():
        rule = _RULES.get(key)
        if rule is None:
            known = tuple(_RULES)
            faults.append(
                f"{where}: unknown field {_show(key)}{nearest(key, known)}; known fields are {', '.join(known)}."
            )
            continue
        values[key], found = _read(key, value, rule, values.get(key))
        faults += [f"{where}: {fault}" for fault in found]
    missing = [f.name for f in fields(ChipConfig) if f.default is MISSING and f.name not in values]
    if missing:
        faults.append(
            f"{where}: missing {'field' if len(missing) == 1 else 'fields'} {', '.join(missing)}; "
            'write each, or start from a named chip with base = "nano".'
        )
    return (None, faults) if faults else (ChipConfig(**values), faults)


def _read(key: str, value: object, rule: Rule, before: object) -> tuple[object, list[str]]:
    """Read one value; return it and the faults found (the value is then of no use)."""
    if rule.kind == "text":
        if isinstance(value, str) and 0 < len(value) <= 64 and value.isprintable():
            return value, []
        return None, [f"{key}={_show(value)} must be text of 1 to 64 printable characters."]
    if rule.kind == "topology":
        if isinstance(value, str) and value in TOPOLOGIES:
            return value, []
        return None, [f"{key}={_show(value)} must be one of {', '.join(TOPOLOGIES)}{nearest(str(value), TOPOLOGIES)}."]
    if rule.kind == "share":
        number = parse_quantity(value, "ratio")
        if number is not None and Fraction(1, 2) <= number <= 1 and number.denominator <= 10**6:
            return number, []
        return None, [f'{key}={_show(value)} must be a share from 1/2 to 1, such as 0.93 or "93/100" ({rule.note}).']
    if rule.kind == "rates":
        return _read_table(key, value, before or FULL_RATES, PAIRS, _read_rate)
    if rule.kind == "depths":
        return _read_table(key, value, before or SHALLOW_QUEUES, QUEUES, _read_depth)
    number = parse_quantity(value, rule.kind)
    if number is None or (rule.whole and number.denominator != 1):
        return None, [f"{key}={_show(value)} must be {_wanted(rule)}."]
    outside = not rule.low <= number <= rule.high
    uneven = rule.power and (number < 1 or int(number) & (int(number) - 1) != 0)
    if outside or uneven:
        span = f"{_bound(rule.low, rule)}..{_bound(rule.high, rule)}"
        advice = f", for example {_power_near(int(number), rule)}" if rule.power else ""
        return None, [
            f"{key}={_show(value)} must be {'a power of two in ' if rule.power else 'in '}{span}{advice} ({rule.note})."
        ]
    return (int(number) if rule.whole else number), []


def _read_table(key: str, value: object, before: Any, known: tuple[str, ...], read: Any) -> tuple[object, list[str]]:
    """Read a table of named numbers over the values it had before."""
    if isinstance(value, type(before)):
        value = value._asdict()
    if not isinstance(value, Mapping):
        return None, [f"{key}={_show(value)} must be a table with keys from {', '.join(known)}."]
    faults: list[str] = []
    for name, item in value.items():
        if name not in known:
            faults.append(
                f"{key}: unknown key {_show(name)}{nearest(str(name), known)}; known keys are {', '.join(known)}."
            )
            continue
        number = read(item)
        if isinstance(number, str):
            faults.append(f"{key}.{name}={_show(item)} {number}")
        else:
            before = before._replace(**{name: number})
    return before, faults


def _read_rate(value: object) -> Fraction | str:
    number = parse_quantity(value, "ratio")
    allowed = (Fraction(1), Fraction(1, 2), Fraction(1, 4), Fraction(1, 8))
    return number if number in allowed and number is not None else 'must be 1, "1/2", "1/4" or "1/8".'


def _read_depth(value: object) -> int | str:
    fine = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 64
    return value if fine and isinstance(value, int) else "must be a whole number in 2..64."


def _wanted(rule: Rule) -> str:
    """Say what kind of value a rule wants."""
    if rule.kind in SCALES:
        example = {"bytes": "64 KiB", "bytes/s": "8 GB/s", "Hz": "500 MHz", "ns": "20 ns", "W": "700 W"}[rule.kind]
        return f'a{" whole" if rule.whole else ""} number of {rule.kind}, or text such as "{example}"'
    return "a whole number"


def _bound(value: int, rule: Rule) -> str:
    """Write a bound of a range in the base unit's best form."""
    return format_quantity(value, rule.kind)


def _power_near(number: int, rule: Rule) -> str:
    """Name the legal powers of two on both sides of a number."""
    low = max(rule.low, min(rule.high, 1 << max(0, number.bit_length() - 1)))
    low = 1 << (low - 1).bit_length() if low > 1 else low
    high = min(rule.high, low * 2)
    return f"{low}" if low == high or number < rule.low or number > rule.high else f"{low} or {high}"


def _show(value: object) -> str:
    """Write a value as it stood in the file, cut where it is long."""
    if isinstance(value, Fraction):
        return _show(value.numerator) if value.denominator == 1 else format_quantity(value, "ratio")
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def iter_fields(config: ChipConfig) -> Iterator[tuple[str, object]]:
    """Yield (field, value) in the order of the record."""
    for field in fields(config):
        yield field.name, getattr(config, field.name)
