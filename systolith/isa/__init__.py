"""The instruction set: descriptors, instruction records with their definition, programs, assembler, the executor.

docs/decisions/0001-isa.md and 0002-program-and-executors.md are the decisions; docs/isa has a page per instruction.
"""

from .choice import Group, Topk
from .collective import Put
from .descriptor import Descriptor, Format, Space
from .dma import Copy
from .execute import Machine
from .host import Ring
from .instruction import Instruction, Queue
from .matrix import Matmul, Zero
from .program import ISA_VERSION, Image, Program, Requires
from .registry import BY_NAME, INSTRUCTIONS, decode, layout_of
from .sequencer import Adv, Alu, AluFn, Br, Cond, Desc, Halt, Loop, Readx, Set, Sync
from .vector import Func, Op1, Op2, Pick, Red, Vec

__all__ = [
    "BY_NAME", "INSTRUCTIONS", "ISA_VERSION", "Adv", "Alu", "AluFn", "Br", "Cond", "Copy", "Desc", "Descriptor",
    "Format", "Func", "Group", "Halt", "Image", "Instruction", "Loop", "Machine", "Matmul", "Op1", "Op2", "Pick",
    "Program", "Put", "Queue", "Readx", "Red", "Requires", "Ring", "Set", "Space", "Sync", "Topk", "Vec", "Zero",
    "decode", "layout_of",
]  # fmt: skip
