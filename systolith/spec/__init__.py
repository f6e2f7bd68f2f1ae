"""What a chip is: the record a person writes, the checked and derived `Chip`, the named chips, and the errors.

Standard library only; every other layer stands on this one.
"""

from .catalogue import NAMES, load
from .chip import Chip, derive, network_hops
from .config import ChipConfig, PairRates, QueueDepths, Rule, read_config, rules
from .describe import Row, describe
from .errors import CapacityError, ConfigError, ModelError, ProgramError, SystolithError
from .limits import (
    ARRIVAL_COUNTERS,
    BLOCK,
    CELLS,
    CHUNK_TOKENS,
    DESCRIPTORS,
    DRAM_ADDRESS_BITS,
    LOOP_DEPTH,
    RANK_REGISTER,
    REGISTERS,
    SEMAPHORE_MAX,
    SEMAPHORES,
    SLICES_REGISTER,
    WORD_BYTES,
)
from .quantity import format_quantity, parse_quantity
from .units import PAIR_BITS, PAIRS, QUEUE_UNITS, QUEUES, SPACES, TOPOLOGIES, UNIT_QUEUES, UNITS

__all__ = [
    "ARRIVAL_COUNTERS",
    "BLOCK",
    "CELLS",
    "CHUNK_TOKENS",
    "DESCRIPTORS",
    "DRAM_ADDRESS_BITS",
    "LOOP_DEPTH",
    "NAMES",
    "PAIRS",
    "PAIR_BITS",
    "QUEUES",
    "QUEUE_UNITS",
    "RANK_REGISTER",
    "REGISTERS",
    "SEMAPHORES",
    "SEMAPHORE_MAX",
    "SLICES_REGISTER",
    "SPACES",
    "TOPOLOGIES",
    "UNITS",
    "UNIT_QUEUES",
    "WORD_BYTES",
    "CapacityError",
    "Chip",
    "ChipConfig",
    "ConfigError",
    "ModelError",
    "PairRates",
    "ProgramError",
    "QueueDepths",
    "Row",
    "Rule",
    "SystolithError",
    "derive",
    "describe",
    "format_quantity",
    "load",
    "network_hops",
    "parse_quantity",
    "read_config",
    "rules",
]
