"""The fast functional simulator: the same program as `isa.execute`, compiled, the same bits.

`machine.FastMachine` runs a program; `fuzz` compares it with the definition; `sanitizer` finds races, deadlock and
the like. Kernels share tables and record fields with the definition, and no arithmetic.
"""

from .machine import FastMachine

__all__ = ["FastMachine"]
