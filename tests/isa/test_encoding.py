import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolith.isa import INSTRUCTIONS, Alu, Br, Copy, Halt, Loop, Op1, Op2, Put, Queue, Set, Sync, Vec, decode
from systolith.isa.asm import assemble, disassemble, line_of
from systolith.isa.instruction import FIELD_BITS, OPERAND_BITS, OPERAND_LOW
from systolith.isa.registry import layout_of
from systolith.spec import ProgramError

from .helpers import random_instruction, random_program


@pytest.mark.parametrize("cls", INSTRUCTIONS.values(), ids=lambda cls: cls.NAME)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_words_round_trip(cls, seed):
    instruction = random_instruction(random.Random(seed), cls)
    word = instruction.encode()
    assert word < 1 << 128
    assert decode(word) == instruction
    assert type(decode(word)) is cls


@pytest.mark.parametrize("cls", INSTRUCTIONS.values(), ids=lambda cls: cls.NAME)
def test_fields_lie_apart_and_in_the_place_that_the_decision_page_gives(cls):
    taken = 0
    for bits in cls.LAYOUT:
        mask = (1 << bits.width) - 1 << bits.low
        assert not taken & mask
        taken |= mask
        assert bits.low + bits.width <= FIELD_BITS or bits.low in (*OPERAND_LOW.values(), 74, 98)
        if bits.low in OPERAND_LOW.values():
            assert bits.width == OPERAND_BITS


@pytest.mark.parametrize("cls", INSTRUCTIONS.values(), ids=lambda cls: cls.NAME)
def test_a_reserved_bit_is_refused(cls):
    rng = random.Random(1)
    word = random_instruction(rng, cls).encode()
    used = sum((1 << bits.width) - 1 << bits.low for bits in cls.LAYOUT)
    free = [n for n in range(122) if not used >> n & 1]
    for n in free:
        message = f"{cls.NAME}: reserved bits {1 << n:#x} must be zero."
        with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
            decode(word | 1 << n)


@pytest.mark.parametrize("opcode", [0, *range(18, 64)])
def test_an_unknown_opcode_is_refused(opcode):
    with pytest.raises(ProgramError, match=rf"^opcode={opcode} is unknown; known are 1\.\.17\.$"):
        decode(opcode << 122)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Set(r=32, imm=0), "SET: r=32 does not fit (0..31)."),
        (lambda: Alu(r=0, imm=40000), "ALU: imm=40000 does not fit (-32768..32767)."),
        (
            lambda: Alu(r=0, fn=12),
            "ALU: fn=12 must be one of 0 add, 1 sub, 2 mul, 3 shl, 4 shr, 5 and, 6 or, 7 min, 8 max, 9 ceildiv.",
        ),
        (lambda: Loop(count=1, len=0), "LOOP: len=0 must be at least 1 word."),
        (lambda: Copy(on=Queue.M, d=1, a=2), "COPY: on=2 must be 0 (W), 1 (L) or 4 (S)."),
        (lambda: Copy(on=Queue.L, d=0, a=2), "COPY: d=0 and a=0 mean none; name two descriptors."),
        (lambda: Sync(on=Queue.SEQ), "SYNC: on=6 must be a queue, 0..5 (W L M V S C)."),
        (lambda: Put(d=1, a=1, sem=24, arrive=1), "PUT: sem=24 must be in 0..23."),
        (lambda: Put(d=1, a=1, sem=2), "PUT: sem, counter and expect must be 0 without arrive=1."),
        (
            lambda: Vec(d=1, a=1, op1=Op1.ADD),
            "VEC: b=0 and op1=add: an operation takes b, and b takes an operation.",
        ),
        (lambda: Vec(a=1), "VEC: d=0 and red=none: there is no result."),
        (
            lambda: Vec(d=1, a=1, b=2, c=3, op1=Op1.SHIFTADD, op2=Op2.ADD),
            "VEC: op2 must be none with op1=shiftadd, whose exponents are D[c] and D[c+1].",
        ),
        (lambda: Vec(d=1, a=1, mask=1), "VEC: mask=1 needs func=fix, no op2, no shiftadd, and a register as c."),
    ],
)
def test_illegal_records_are_refused(make, message):
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        make()


def test_layout_of_names_the_lowest_bit():
    assert layout_of("VEC", "op2") == 4
    assert layout_of("PUT", "expect") == 20
    assert layout_of("COPY", "wait") == 98


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_text_round_trips(seed):
    rng = random.Random(seed)
    p = random_program(rng, rng.randrange(1, 30))
    text = disassemble(p)
    q = assemble(text)
    assert (q.words, q.constants, q.sem_init, q.requires, q.meta, q.name) == (
        p.words, p.constants, p.sem_init, p.requires, p.meta, p.name,
    )  # fmt: skip
    assert q.sha256 == p.sha256
    assert disassemble(q) == text


def test_text_of_one_of_each(golden):
    rng = random.Random(7)
    lines = []
    for cls in INSTRUCTIONS.values():
        i = random_instruction(rng, cls)
        lines.append(f"{i.encode():032x}  {line_of(i)}")
    golden("words.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FOO R1", "x.sasm:1: instruction FOO is unknown; known are SET, ALU, DESC, ADV, LOOP, BR, READX, HALT, COPY, "
                   "MATMUL, VEC, PICK, PUT, SYNC, RING, TOPK, GROUP."),
        ("HALT\nCOPY D1, D2", "x.sasm:2: COPY: write COPY and a queue, as in COPY.L."),
        ("VEC.V D1, D2", "x.sasm:1: VEC.V: write VEC; it has no queue."),
        ("SET R1 value=3", "x.sasm:1: SET has no field 'value'; it has imm."),
        ("SET R1 imm=three", "x.sasm:1: 'three' is not a number."),
        ("SET D1 imm=3", "x.sasm:1: operand r=D1 must be written Rn, or - for none."),
        ("SET R1, R2", "x.sasm:1: SET does not take 'R2': it takes 1 operands."),
        ("SET", "x.sasm:1: SET needs operands r."),
        ("BR R0, R0, nowhere", "x.sasm:1: label 'nowhere' is not defined."),
        ("a: HALT\na: HALT", "x.sasm:2: label 'a' is already defined; take another name."),
        (".const w space=DRAM fmt=INT8", "x.sasm:1: descriptor field 'fmt' is unknown; known are space, format, scale, "
                                         "base, sbase, ext, stride, step, xb, xe, via, unit, wrap."),
        (".const w ext=1,2", "x.sasm:1: ext=1,2 must be three numbers, dimension 0 first."),
        (".sem F 24", "x.sasm:1: semaphore 24 must be in 0..23."),
        (".what", "x.sasm:1: .what is not understood; write .name TEXT, .require KEY=N, .pairs PAIR, .meta JSON, "
                  ".sem NAME NUMBER [COUNT] or .const NAME KEY=VALUE."),
        ("DESC D1, 3\nHALT", "x.sasm: program '': word 0: DESC names constant 3, but the program has 0."),
        ("SYNC.Q", "x.sasm:1: queue=Q must be one of w, l, m, v, s, c, seq."),
    ],
)  # fmt: skip
def test_faults_in_text_name_file_and_line(text, message):
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        assemble(text, "x.sasm")


def test_a_branch_out_of_its_loop_is_refused():
    words = (Loop(count=2, len=2).encode(), Br(target=3).encode(), Set(r=1).encode(), Halt().encode())
    from systolith.isa import Program

    message = "program '': word 1: BR to word 3 leaves its innermost loop body, words 1..2."
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        Program(words=words)


def test_loops_that_cross_or_nest_too_deep_are_refused():
    from systolith.isa import Program

    crossing = (Loop(count=1, len=2), Loop(count=1, len=2), Set(r=1), Set(r=1))
    message = "program '': word 1: LOOP ends at word 4, past the end of what is around it, word 3."
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        Program(words=tuple(i.encode() for i in crossing))
    deep = [Loop(count=1, len=9 - n) for n in range(9)] + [Set(r=1)]
    with pytest.raises(ProgramError, match=r"^program '': word 8: loops nest 9 deep; at most 8 may\.$"):
        Program(words=tuple(i.encode() for i in deep))
