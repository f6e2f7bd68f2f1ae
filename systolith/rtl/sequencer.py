"""The sequencer: fetch, registers, descriptors, loops, branches, dispatch; a word every `issue_cycles`.

The next word's address goes to the program memory in the cycle in which the word before it completes, so that the way
back of a loop costs nothing. A descriptor constant arrives a cycle after DESC and is passed by until it is stored.
"""

from __future__ import annotations

from typing import Any, Final

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from systolith.isa.descriptor import DESCRIPTOR_BITS, DESCRIPTOR_BYTES
from systolith.isa.instruction import OPERAND_LOW
from systolith.isa.registry import BY_NAME
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.state import SLICES_REGISTER
from systolith.spec import (
    DESCRIPTORS,
    LOOP_DEPTH,
    QUEUES,
    RANK_REGISTER,
    REGISTERS,
    SEMAPHORES,
    WORD_BYTES,
    Chip,
)

from .memory import WordMemory
from .ports import COMMANDS
from .queue import COPY, DESCRIPTOR, LETTERS, TIME_BITS, entry_layout

__all__ = ["Sequencer"]

PC: Final = 16
_OP: Final = {name: record.OPCODE for name, record in BY_NAME.items()}
FILE: Final = data.StructLayout({"d": DESCRIPTOR, "base0": 40, "sbase0": 40})
"""A descriptor register: what DESC and ADV made of it, and where its ring starts."""


def field(word: Any, name: str, bits: str) -> Any:
    """A field of an instruction's word."""
    at = next(b for b in BY_NAME[name].LAYOUT if b.name == bits)
    part = word[at.low : at.low + at.width]
    return part.as_signed() if at.bounds()[0] < 0 else part


class Sequencer(wiring.Component):
    """Members:

    run : in, held from cycle 0 on. rank, slices : in, steady. now : out, the cycle since the start.
    word_we, word_addr, word_data; const_we, const_addr, const_data : program memory, written before the start.
    full_Q, idle : from the queues. push_Q, entry_Q : to them. tokens, take : semaphores, for READX. cell out,
    cell_value in : READX's.
    halted, cause, halt_time : the end. issued : a word completes; issued_pc : its number.
    fault : 1 CEILDIV by 0, 2 ADV out of its field, 3 a word that no unit knows, 4 ADV by a part of a byte or a block.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.words = chip.program_bytes // WORD_BYTES
        self.constants = chip.program_bytes // DESCRIPTOR_BYTES
        members: dict[str, Any] = {
            "run": In(1),
            "rank": In(16),
            "slices": In(16),
            "now": Out(TIME_BITS),
            "word_we": In(1),
            "word_addr": In(PC),
            "word_data": In(8 * WORD_BYTES),
            "const_we": In(1),
            "const_addr": In(PC),
            "const_data": In(DESCRIPTOR_BITS),
            "idle": In(1),
            "tokens": In(SEMAPHORES),
            "take": Out(SEMAPHORES),
            "cell": Out(6),
            "cell_value": In(32),
            "halted": Out(1),
            "cause": Out(16),
            "halt_time": Out(TIME_BITS),
            "issued": Out(1),
            "issued_pc": Out(PC),
            "full_stall": Out(1),
            "fault": Out(4),
            "copied": Out(COPY),
        }
        for q in QUEUES:
            members |= {f"push_{q}": Out(1), f"full_{q}": In(1), f"entry_{q}": Out(entry_layout(q))}
            members[f"copy_{q}"] = Out(len(COMMANDS[q]))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        chip = self.chip
        code = WordMemory("systolith_words", 8 * WORD_BYTES, self.words)
        constants = WordMemory("systolith_constants", DESCRIPTOR_BITS, self.constants)
        m.submodules.code, m.submodules.constants = code.instance(), constants.instance()
        m.d.comb += [
            code.w_en.eq(self.word_we), code.w_addr.eq(self.word_addr), code.w_data.eq(self.word_data),
            constants.w_en.eq(self.const_we), constants.w_addr.eq(self.const_addr),
            constants.w_data.eq(self.const_data),
        ]  # fmt: skip
        self.pc, self.word = Signal(PC), code.r_data
        self.running = Signal()  # a word stands at the sequencer in this cycle
        self.complete = Signal()  # and completes in it
        self.following = Signal(PC)  # word after it, before loops
        self.jumps = Signal()  # BR taken: no iteration ends
        self.stall = Signal(range(chip.branch_cycles + 1))  # cycles that its jump costs
        self._registers(m)
        self._descriptors(m, constants)
        self._execute(m)
        self._loops(m, code)
        return m

    # --- registers ---

    def _registers(self, m: Module) -> None:
        file = m.submodules.registers = memory.Memory(shape=unsigned(32), depth=REGISTERS, init=[])
        self.reg_write = file.write_port()
        word = self.word

        def read(index: Any) -> Any:
            port = file.read_port(domain="comb")
            m.d.comb += port.addr.eq(index)
            return port.data

        self.ra = read(word[OPERAND_LOW["a"] :][:5])
        self.rb = read(word[OPERAND_LOW["b"] :][:5])
        self.rc = read(word[OPERAND_LOW["c"] :][:5])
        # The register of ADV, LOOP, and VEC's position and window.
        self.r_adv, self.r_loop = read(field(word, "ADV", "r")), read(field(word, "LOOP", "r"))
        self.r_j, self.r_w = read(field(word, "VEC", "rj")), read(field(word, "VEC", "rw"))

    # --- descriptors ---

    def _descriptors(self, m: Module, load: Any) -> None:
        word = self.word
        file = m.submodules.file = memory.Memory(shape=unsigned(FILE.size), depth=DESCRIPTORS, init=[])
        bases = m.submodules.bases = memory.Memory(shape=unsigned(40), depth=DESCRIPTORS, init=[])
        read, list_read = file.read_port(domain="comb"), bases.read_port(domain="comb")
        late, move = (file.write_port(), bases.write_port()), (file.write_port(), bases.write_port())
        self.copy_index = Signal(6)
        op = word[122:128]
        target = word[OPERAND_LOW["d"] :][:6]
        is_adv = op == _OP["ADV"]
        # DESC: the constant arrives in the cycle after, and is stored at its end.
        pending, pending_d = Signal(), Signal(6)
        m.d.comb += load.r_addr.eq(field(word, "DESC", "k"))
        m.d.sync += [pending.eq(self.complete & (op == _OP["DESC"])), pending_d.eq(target)]
        constant = data.View(DESCRIPTOR, load.r_data)
        fresh = Cat(load.r_data, constant.base, constant.sbase)
        m.d.comb += [read.addr.eq(Mux(is_adv, target, self.copy_index))]
        self.entry = data.View(FILE, Mux(pending & (pending_d == read.addr), fresh, read.data))
        m.d.comb += list_read.addr.eq(self.entry.d.via)
        self.list_base = Mux(pending & (pending_d == list_read.addr), constant.base, list_read.data)
        moved = Signal(FILE)
        adv_now = self.complete & is_adv
        m.d.comb += [
            late[0].en.eq(pending & ~(adv_now & (pending_d == target))),
            late[0].addr.eq(pending_d),
            late[0].data.eq(fresh),
            late[1].en.eq(late[0].en),
            late[1].addr.eq(pending_d),
            late[1].data.eq(constant.base),
            move[0].en.eq(adv_now),
            move[0].addr.eq(target),
            move[0].data.eq(Value.cast(moved)),
            move[1].en.eq(adv_now),
            move[1].addr.eq(target),
            move[1].data.eq(moved.d.base),
        ]
        self._advance(m, moved, adv_now)

    def _advance(self, m: Module, moved: Any, now: Any) -> None:
        """ADV: move base and sbase by n strides, modulo the ring; or set an extent."""
        word, e = self.word, self.entry
        n = Signal(signed(33))
        m.d.comb += n.eq(Mux(field(word, "ADV", "use_reg"), self.r_adv.as_signed(), field(word, "ADV", "imm")))
        dim = field(word, "ADV", "dim")
        stride = Signal(signed(32))
        with m.Switch(dim):
            for i in range(3):
                with m.Case(i):
                    m.d.comb += stride.eq(e.d[f"stride{i}"])
            with m.Case(3):
                m.d.comb += stride.eq(e.d.step)
        step, position, inside, delta = (Signal(signed(66), name=name) for name in ("step", "place", "inside", "delta"))
        wrap = e.d.wrap
        bytes_in = Signal(signed(42))
        m.d.comb += [step.eq(n * stride), bytes_in.eq(e.d.base - e.base0)]
        with m.Switch(e.d.format):
            with m.Case(0):
                m.d.comb += position.eq(bytes_in << 1)
            with m.Case(3, 4):
                m.d.comb += position.eq(bytes_in >> 2)
            with m.Default():
                m.d.comb += position.eq(bytes_in)
        m.d.comb += inside.eq(position + step)
        base, sbase = Signal(signed(68)), Signal(signed(68))
        with m.If(wrap == 0):
            m.d.comb += [delta.eq(step), base.eq(e.d.base), sbase.eq(e.d.sbase)]
        with m.Else():
            m.d.comb += [base.eq(e.base0), sbase.eq(e.sbase0)]
            # Modulo for both signs. Programs move by any number of rings, so this is a division in one cycle.
            size, rest = Signal(63), Signal(32)
            m.d.comb += [
                size.eq(Mux(inside < 0, -inside, inside)),
                rest.eq(size % Mux(wrap == 0, 1, wrap)),
                delta.eq(Mux((inside < 0) & (rest != 0), wrap - rest, rest)),
            ]
        bytes_out, new_base = Signal(signed(68)), Signal(signed(68))
        with m.Switch(e.d.format):
            with m.Case(0):
                m.d.comb += bytes_out.eq(delta >> 1)
            with m.Case(3, 4):
                m.d.comb += bytes_out.eq(delta << 2)
            with m.Default():
                m.d.comb += bytes_out.eq(delta)
        m.d.comb += [moved.eq(e), new_base.eq(base + bytes_out)]
        with m.If(field(word, "ADV", "kind")):
            with m.Switch(dim):
                for i in range(3):
                    with m.Case(i):
                        m.d.comb += moved.d[f"ext{i}"].eq(n)
            with m.If((n < 0) | (n >= 1 << 20)):
                m.d.sync += self.fault.eq(Mux(now, 2, self.fault))
        with m.Else():
            m.d.comb += moved.d.base.eq(new_base)
            with m.If(e.d.scale):
                m.d.comb += moved.d.sbase.eq(sbase + (delta >> 5))
            with m.Else():
                m.d.comb += moved.d.sbase.eq(sbase)
            with m.If(now & ((new_base < 0) | (new_base >= 1 << 40))):
                m.d.sync += self.fault.eq(2)
            with m.If(now & (((e.d.format == 0) & delta[0]) | (e.d.scale & (delta[:5] != 0)))):
                m.d.sync += self.fault.eq(4)

    # --- words ---

    def _execute(self, m: Module) -> None:
        """Run the word: dispatch to a queue, or one of the sequencer's own."""
        word, chip = self.word, self.chip
        op = word[122:128]
        slots = {letter: word[OPERAND_LOW[letter] :][:6] for letter in "dabc"}
        mask = field(word, "VEC", "mask")
        red, op1 = field(word, "VEC", "red"), field(word, "VEC", "op1")
        present = Signal(6)  # D A B C E F
        queue = Signal(3, init=6)
        on_copy, on_sync = field(word, "COPY", "on"), field(word, "SYNC", "on")
        with m.Switch(op):
            for name, letters in (("COPY", "da"), ("MATMUL", "dab"), ("PUT", "da"), ("RING", "a"), ("TOPK", "dae"),
                                  ("GROUP", "dabe"), ("PICK", "dabcf"), ("SYNC", "")):  # fmt: skip
                with m.Case(_OP[name]):
                    m.d.comb += present.eq(sum(1 << LETTERS.index(letter) for letter in letters))
                    home = {"MATMUL": 2, "TOPK": 3, "GROUP": 3, "PICK": 3, "PUT": 5, "RING": 4}.get(name)
                    m.d.comb += queue.eq(on_copy if name == "COPY" else on_sync if name == "SYNC" else home)
            with m.Case(_OP["VEC"]):
                m.d.comb += queue.eq(3)
                m.d.comb += present.eq(
                    Cat(slots["d"] != 0, Const(1, 1), slots["b"] != 0, (slots["c"] != 0) & ~mask, red != 0, op1 == 12)
                )
            for name in ("SET", "ALU", "DESC", "ADV", "LOOP", "BR", "READX", "HALT"):
                with m.Case(_OP[name]):
                    pass
            with m.Default(), m.If(self.running):
                m.d.sync += self.fault.eq(3)
        # Copies: one descriptor a cycle, in the order D A B C E F.
        fresh, todo, step = Signal(init=1), Signal(6), Signal(range(chip.issue_cycles + 1))
        left, bit = Signal(6), Signal(6)
        m.d.comb += [left.eq(Mux(fresh, present, todo)), bit.eq(left & -left)]
        index = Signal(6)
        sources = (slots["d"], slots["a"], slots["b"], slots["c"], slots["d"] + 1, slots["c"] + 1)
        for i, source in enumerate(sources):
            with m.If(bit[i]):
                m.d.comb += index.eq(source)
        m.d.comb += self.copy_index.eq(index)
        m.d.comb += [self.copied.d.eq(self.entry.d), self.copied.list.eq(self.list_base)]
        enough = Signal()
        m.d.comb += enough.eq(Mux(fresh, chip.issue_cycles == 1, step >= chip.issue_cycles - 1))
        full = Signal()
        for q, name in enumerate(QUEUES):
            with m.If(queue == q):
                m.d.comb += full.eq(getattr(self, f"full_{name}"))
        is_queue, last = queue != 6, (left & ~bit) == 0
        with m.If(self.running & is_queue):
            with m.If(~last):
                m.d.sync += todo.eq(left & ~bit)
            with m.Else():
                m.d.sync += todo.eq(left)  # the last one is read again while the queue is full
        m.d.sync += [fresh.eq(self.complete | ~self.running)]
        with m.If(self.running & ~self.complete):
            m.d.sync += step.eq(Mux(fresh, 1, Mux(step == chip.issue_cycles, step, step + 1)))
        push = self.running & is_queue & last & enough & ~full
        m.d.comb += self.full_stall.eq(self.running & is_queue & last & enough & full)
        for q, name in enumerate(QUEUES):
            self._entry(m, name, push & (queue == q), self.running & (queue == q), present, bit)
        self._own(m, op, push, enough, fresh)

    def _entry(self, m: Module, name: str, push: Any, mine: Any, present: Any, bit: Any) -> None:
        """Fill the entry of a queue: a descriptor a cycle, and with the last one the word."""
        entry, word = getattr(self, f"entry_{name}"), self.word
        m.d.comb += [
            getattr(self, f"push_{name}").eq(push),
            entry.op.eq(word[122:128]),
            entry.pc.eq(self.pc),
            entry.wait.eq(word[98:122]),
            entry.post.eq(word[74:98]),
            entry.fields.eq(word[:50]),
        ]
        for k, letter in enumerate(COMMANDS[name].lower()):
            m.d.comb += getattr(self, f"copy_{name}")[k].eq(mine & bit[LETTERS.index(letter)])
        m.d.comb += entry.present.eq(present)
        if name == "M":
            zero = field(word, "MATMUL", "zero")
            m.d.comb += entry.zero.eq((zero == 1) | ((zero == 2) & self.first_iteration))
        if name == "V":
            m.d.comb += [entry.r_hi.eq(self.rc), entry.r_j.eq(self.r_j), entry.r_w.eq(self.r_w)]
        if name == "C":
            m.d.comb += entry.cell.eq(word[OPERAND_LOW["b"] :][:6])

    @property
    def first_iteration(self) -> Any:
        """Innermost loop in its first iteration, or no loop."""
        if not hasattr(self, "_first"):
            self._first = Signal(name="first_iteration")
        return self._first

    def _own(self, m: Module, op: Any, push: Any, enough: Any, fresh: Any) -> None:
        """The sequencer's own words, and when any word completes."""
        word, chip, w = self.word, self.chip, self.reg_write
        reading = Signal(range(chip.issue_cycles + chip.bank_cycles + 1))  # READX: cycles left
        done_now = Signal()  # a word of one issue interval is over
        m.d.comb += [done_now.eq(self.running & enough), self.following.eq(self.pc + 1)]
        target = word[OPERAND_LOW["d"] :][:5]
        with m.If(~self.run):  # before cycle 0: rank and slices
            phase = Signal()
            m.d.sync += phase.eq(~phase)
            m.d.comb += [
                w.en.eq(1),
                w.addr.eq(Mux(phase, RANK_REGISTER, SLICES_REGISTER)),
                w.data.eq(Mux(phase, self.rank, self.slices)),
            ]
        with m.Elif(self.running), m.Switch(op):
            with m.Case(_OP["SET"]):
                m.d.comb += [self.complete.eq(done_now), w.en.eq(done_now), w.addr.eq(target)]
                m.d.comb += w.data.eq(field(word, "SET", "imm"))
            with m.Case(_OP["ALU"]):
                m.d.comb += [self.complete.eq(done_now), w.en.eq(done_now), w.addr.eq(target)]
                m.d.comb += w.data.eq(self._alu(m, done_now))
            with m.Case(_OP["DESC"], _OP["ADV"]):
                m.d.comb += self.complete.eq(done_now)
            with m.Case(_OP["LOOP"]):
                m.d.comb += self.complete.eq(done_now)
                with m.If(self.loop_count == 0):
                    m.d.comb += [
                        self.following.eq(self.pc + 1 + field(word, "LOOP", "len")),
                        self.stall.eq(chip.branch_cycles),
                    ]
            with m.Case(_OP["BR"]):
                m.d.comb += self.complete.eq(done_now)
                with m.If(self._holds(m)):
                    m.d.comb += [
                        self.following.eq(field(word, "BR", "target")),
                        self.jumps.eq(1),
                        self.stall.eq(chip.branch_cycles),
                    ]
            with m.Case(_OP["READX"]):
                wait = word[98:122]
                there = (wait & ~self.tokens) == 0
                x = field(word, "READX", "x")
                m.d.comb += [w.addr.eq(target), w.data.eq(self.cell_value), self.cell.eq(x)]
                with m.If(reading == 0), m.If(there):
                    m.d.comb += [self.take.eq(wait), w.en.eq(1)]
                    m.d.sync += reading.eq(chip.issue_cycles + chip.bank_cycles - 1)
                with m.Else():
                    m.d.sync += reading.eq(reading - 1)
                    m.d.comb += self.complete.eq(reading == 1)
            with m.Case(_OP["HALT"]), m.If(~fresh & self.idle):
                m.d.sync += [self.halted.eq(1), self.halt_time.eq(self.now), self.cause.eq(word[:16])]
            with m.Default():
                m.d.comb += self.complete.eq(push)
        m.d.comb += [self.issued.eq(self.complete), self.issued_pc.eq(self.pc)]

    def _alu(self, m: Module, now: Any) -> Any:
        x, y, out = self.ra, Signal(32), Signal(32)
        word = self.word
        fn = field(word, "ALU", "fn")
        m.d.comb += y.eq(Mux(field(word, "ALU", "use_imm"), field(word, "ALU", "imm"), self.rb))
        with m.Switch(fn):
            for code, value in (
                (AluFn.ADD, x + y), (AluFn.SUB, x - y), (AluFn.MUL, x * y), (AluFn.SHL, x << y[:5]),
                (AluFn.SHR, x >> y[:5]), (AluFn.AND, x & y), (AluFn.OR, x | y), (AluFn.MIN, Mux(x < y, x, y)),
                (AluFn.MAX, Mux(x < y, y, x)),
            ):  # fmt: skip
                with m.Case(int(code)):
                    m.d.comb += out.eq(value)
            with m.Case(int(AluFn.CEILDIV)):
                m.d.comb += out.eq((x + y - 1) // Mux(y == 0, 1, y))
                with m.If(now & (y == 0)):
                    m.d.sync += self.fault.eq(1)
        return out

    def _holds(self, m: Module) -> Any:
        x, y, out = self.ra, Signal(32), Signal()
        word = self.word
        m.d.comb += y.eq(Mux(field(word, "BR", "use_imm"), field(word, "BR", "imm"), self.rb))
        with m.Switch(field(word, "BR", "cond")):
            for code, value in (
                (Cond.ALWAYS, Const(1)), (Cond.EQ, x == y), (Cond.NE, x != y), (Cond.LT, x < y), (Cond.GE, x >= y),
            ):  # fmt: skip
                with m.Case(int(code)):
                    m.d.comb += out.eq(value)
        return out

    @property
    def loop_count(self) -> Any:
        """Count of the LOOP at hand."""
        word = self.word
        return Mux(field(word, "LOOP", "use_reg"), self.r_loop, field(word, "LOOP", "count"))

    # --- loops and fetch ---

    def _loops(self, m: Module, fetch: Any) -> None:
        chip, word = self.chip, self.word
        starts = Array(Signal(PC, name=f"loop_start{i}") for i in range(LOOP_DEPTH))
        ends = Array(Signal(PC, name=f"loop_end{i}") for i in range(LOOP_DEPTH))
        lefts = Array(Signal(32, name=f"loop_left{i}") for i in range(LOOP_DEPTH))
        firsts = Array(Signal(name=f"loop_first{i}") for i in range(LOOP_DEPTH))
        depth = Signal(range(LOOP_DEPTH + 1))
        top = Signal(range(LOOP_DEPTH))
        m.d.comb += [top.eq(depth - 1), self.first_iteration.eq((depth == 0) | firsts[top])]
        m.d.sync += self.now.eq(Mux(self.run, self.now + 1, 0))

        stalls = Signal(range(chip.branch_cycles + 2), init=chip.branch_cycles)  # cycles till the next word
        check = Signal()  # at their end, look whether a body ends before `target`
        target = Signal(PC)  # the word that follows
        m.d.comb += self.running.eq(self.run & (stalls == 0) & ~self.halted)
        enters = self.complete & (word[122:128] == _OP["LOOP"]) & (self.loop_count != 0)

        # A decision is due in the cycle before the next word could stand here.
        deciding, place, looks = Signal(), Signal(PC), Signal()
        with m.If(self.complete):
            m.d.comb += [
                deciding.eq(self.stall == 0),
                place.eq(self.following),
                looks.eq(~self.jumps & ~enters),
            ]
        with m.Else():
            m.d.comb += [deciding.eq(self.run & (stalls == 1)), place.eq(target), looks.eq(check)]
        ended = deciding & looks & (depth != 0) & (ends[top] == place)
        again, over = Signal(), Signal()
        m.d.comb += [again.eq(ended & (lefts[top] != 1)), over.eq(ended & (lefts[top] == 1))]
        goes = Signal(PC)
        m.d.comb += goes.eq(Mux(again, starts[top], place))
        m.d.comb += fetch.r_addr.eq(Mux(self.complete | deciding, goes, Mux(stalls == 0, self.pc, target)))

        with m.If(enters):
            m.d.sync += [
                starts[depth].eq(self.pc + 1),
                ends[depth].eq(self.pc + 1 + field(word, "LOOP", "len")),
                lefts[depth].eq(self.loop_count),
                firsts[depth].eq(1),
                depth.eq(depth + 1),
            ]
        with m.If(again):
            m.d.sync += [lefts[top].eq(lefts[top] - 1), firsts[top].eq(0)]
        with m.If(over):
            m.d.sync += depth.eq(depth - 1)
        with m.If(self.complete & (self.stall != 0)):
            m.d.sync += [stalls.eq(self.stall), check.eq(~self.jumps), target.eq(self.following)]
        with m.Elif(over):
            m.d.sync += [stalls.eq(chip.branch_cycles), check.eq(1), target.eq(place)]
        with m.Elif(deciding):
            m.d.sync += [stalls.eq(0), check.eq(0), self.pc.eq(goes)]
        with m.Elif(self.run & (stalls != 0)):
            m.d.sync += stalls.eq(stalls - 1)
