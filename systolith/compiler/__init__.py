"""The compiler: a checkpoint and a chip in, a program out."""

from systolith.compiler.compile import Compiled, compile_model
from systolith.compiler.options import Options
from systolith.compiler.plan import Plan

__all__ = ["Compiled", "Options", "Plan", "compile_model"]
