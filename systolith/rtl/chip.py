"""A slice and the chip: units, queues, memories and channel joined; the top that `rtl.emit` writes as Verilog."""

from __future__ import annotations

from typing import Any, Final

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.isa.descriptor import DESCRIPTOR_BITS, Space
from systolith.spec import QUEUES, SEMAPHORES, WORD_BYTES, Chip

from .channel import PORTS, Channel
from .collective import MESSAGE, CollectiveUnit, Network, piece_layout
from .dma import DmaEngine
from .host import HostPort
from .leaf import leaf_of
from .matrix import MatrixUnit
from .memory import ByteMemory, Cells
from .ports import Port
from .queue import RIDERS, TIME_BITS, Queue
from .semaphores import Semaphores
from .sequencer import PC, Sequencer
from .vector import VectorUnit

__all__ = ["ChipTop", "Slice", "slice_members"]

MEMORY_PORTS: Final = {"W": False, "L": False, "S": True}
"""Ports to the memory outside, and whether they write."""


def slice_members(chip: Chip) -> dict[str, Any]:
    """What a slice shows outside of the chip, with directions from the slice."""
    n = chip.bank_bytes
    members: dict[str, Any] = {
        "word_we": In(1), "const_we": In(1), "sem_we": In(1), "load_addr": In(PC), "word_data": In(8 * WORD_BYTES),
        "const_data": In(DESCRIPTOR_BITS), "hold": In(1), "hold_net": In(1), "hold_host": In(1),
        "look": In(1), "look_space": In(3), "look_addr": In(32),
        "look_data": Out(8 * n), "halted": Out(1), "cause": Out(16), "halt_time": Out(TIME_BITS), "fault": Out(10),
        "ring_words": Out(range(n // 4 + 1)), "ring_data": Out(8 * n), "ring_last": Out(1),
        "issued": Out(1), "issued_pc": Out(PC), "full_stall": Out(1), "bus_busy": Out(1), "waits": Out(len(QUEUES)),
        "queued": Out(len(QUEUES)),
    }  # fmt: skip
    for q, write in MEMORY_PORTS.items():
        members |= {f"m_{q}_en": Out(1), f"m_{q}_addr": Out(40)}
        members |= {f"m_{q}_data": Out(8 * n), f"m_{q}_mask": Out(n)} if write else {f"m_{q}_data": In(8 * n)}
        if not write:
            members[f"m_{q}_bytes"] = Out(range(n + 1))
    for q in QUEUES:
        members |= {f"started_{q}": Out(1), f"pc_{q}": Out(PC), f"ended_{q}": Out(range(RIDERS + 1))}
    return members


class Slice(wiring.Component):
    """One slice. `slice_members`, and run, rank, slices in; to the network: send, message, piece, sent, posts,
    net_idle,
    write_S (from sender S); now out.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        layout = piece_layout(chip)
        super().__init__(
            slice_members(chip)
            | {"run": In(1), "rank": In(16), "slices": In(16), "now": Out(TIME_BITS)}
            | {"send": Out(1), "message": Out(MESSAGE), "piece": Out(layout), "moving": Out(1), "sent": In(TIME_BITS)}
            | {"posts": In(SEMAPHORES), "net_idle": In(1)}
            | {f"write_{s}": In(layout) for s in range(chip.slices)}
        )

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        chip = self.chip
        sequencer = m.submodules.sequencer = Sequencer(chip)
        semaphores = m.submodules.semaphores = Semaphores(chip)
        channel = m.submodules.channel = Channel(chip)
        queues = {q: Queue(chip, q) for q in QUEUES}
        engines = {q: DmaEngine(chip, q) for q in MEMORY_PORTS}
        matrix, vector = MatrixUnit(chip), VectorUnit(chip)
        collective, host = CollectiveUnit(chip), HostPort(chip)
        units: dict[str, Any] = engines | {"M": matrix, "V": vector, "C": collective}
        for q in QUEUES:
            m.submodules[f"queue_{q}"] = queues[q]
            m.submodules[f"unit_{q}"] = units[q]
        m.submodules.host = host
        cells = Cells(chip.bank_cycles)
        self._memories(m, cells, units | {"H": host})
        cells.look(sequencer.cell, sequencer.cell_value)
        for queue in queues.values():
            for look in queue.looks:
                cells.look(getattr(queue, f"{look}_cell"), getattr(queue, f"{look}_value"))
        m.submodules.cells = cells.instance()

        now = sequencer.now
        m.d.comb += [
            self.now.eq(now), channel.now.eq(now), channel.hold.eq(self.hold), sequencer.run.eq(self.run),
            sequencer.rank.eq(self.rank), sequencer.slices.eq(self.slices),
            sequencer.tokens.eq(semaphores.tokens), semaphores.take_SEQ.eq(sequencer.take),
            sequencer.word_we.eq(self.word_we), sequencer.word_addr.eq(self.load_addr),
            sequencer.word_data.eq(self.word_data), sequencer.const_we.eq(self.const_we),
            sequencer.const_addr.eq(self.load_addr), sequencer.const_data.eq(self.const_data),
            semaphores.load.eq(self.sem_we), semaphores.load_sem.eq(self.load_addr),
            semaphores.load_count.eq(self.word_data), semaphores.arrive.eq(self.posts),
            self.halted.eq(sequencer.halted), self.cause.eq(sequencer.cause), self.halt_time.eq(sequencer.halt_time),
            self.issued.eq(sequencer.issued), self.issued_pc.eq(sequencer.issued_pc),
            self.full_stall.eq(sequencer.full_stall), self.bus_busy.eq(channel.busy),
            self.fault.eq(
                sequencer.fault | (semaphores.fault << 4) | (collective.fault << 5) | (vector.fault << 6)
                | (matrix.fault << 7) | (Cat(*(engine.fault for engine in engines.values())).any() << 8)
                | (Cat(*(queue.fault for queue in queues.values())).any() << 9)
            ),
        ]  # fmt: skip
        idle: Any = self.net_idle
        for i, q in enumerate(QUEUES):
            queue, unit = queues[q], units[q]
            m.d.comb += [
                getattr(sequencer, f"full_{q}").eq(queue.full),
                queue.push.eq(getattr(sequencer, f"push_{q}")),
                queue.entry.eq(getattr(sequencer, f"entry_{q}")),
                queue.copied.eq(sequencer.copied),
                queue.copy.eq(getattr(sequencer, f"copy_{q}")),
                queue.tokens.eq(semaphores.tokens),
                queue.now.eq(now),
                getattr(semaphores, f"take_{q}").eq(queue.take),
                unit.start.eq(queue.start),
                unit.command.eq(queue.command),
                queue.ready.eq(unit.ready),
                getattr(self, f"started_{q}").eq(queue.started),
                getattr(self, f"pc_{q}").eq(queue.start_pc),
                getattr(self, f"ended_{q}").eq(queue.ended),
                self.waits[i].eq(queue.waits),
                self.queued[i].eq(queue.valid),
            ]
            m.d.comb += [getattr(semaphores, f"post_{q}_{k}").eq(getattr(queue, f"posts{k}")) for k in range(RIDERS)]
            idle = idle & queue.empty
            if q in engines:
                self._engine(m, q, queue, engines[q], channel, now)
            else:
                m.d.comb += queue.done.eq(unit.done)
        m.d.comb += [
            sequencer.idle.eq(idle), collective.now.eq(now), collective.hold.eq(self.hold_net),
            self.send.eq(collective.send),
            self.message.eq(collective.message), self.piece.eq(collective.piece), self.moving.eq(collective.moving),
            collective.sent.eq(self.sent),
            host.look.eq(self.look), host.look_space.eq(self.look_space), host.look_addr.eq(self.look_addr),
            self.look_data.eq(host.look_data), self.ring_words.eq(engines["S"].ring_words),
            self.ring_data.eq(engines["S"].ring_data), self.ring_last.eq(engines["S"].ring_last),
        ]  # fmt: skip
        return m

    def _engine(self, m: Module, q: str, queue: Any, engine: Any, channel: Any, now: Any) -> None:
        """Join a DMA engine to its queue, the channel and the memory outside."""
        m.d.comb += [
            engine.hold_host.eq(self.hold_host),
            engine.valid.eq(queue.valid), engine.nothing.eq(queue.nothing), engine.now.eq(now),
            queue.settle.eq(engine.settle), queue.settle_end.eq(engine.settle_end),
            getattr(channel, f"valid_{q}").eq(engine.c_valid), getattr(channel, f"eligible_{q}").eq(engine.c_eligible),
            engine.grant.eq(getattr(channel, f"grant_{q}")), engine.begun.eq(channel.begun),
            getattr(self, f"m_{q}_en").eq(engine.m_en), getattr(self, f"m_{q}_addr").eq(engine.m_addr),
        ]  # fmt: skip
        if MEMORY_PORTS[q]:
            m.d.comb += [getattr(self, f"m_{q}_data").eq(engine.m_data), getattr(self, f"m_{q}_mask").eq(engine.m_mask)]
        else:
            m.d.comb += engine.m_data.eq(getattr(self, f"m_{q}_data"))
            m.d.comb += getattr(self, f"m_{q}_bytes").eq(engine.m_bytes)

    def _memories(self, m: Module, cells: Cells, units: dict[str, Any]) -> None:
        """Make the memories with the ports that the units ask for."""
        chip = self.chip
        sizes = {Space.SPAD: chip.scratchpad_bytes, Space.SLOT: chip.slots_bytes, Space.ACC: chip.accumulator_bytes}
        memories = {
            space: ByteMemory(f"systolith_{space.name.lower()}", size, chip.bank_cycles)
            for space, size in sizes.items()
        }
        for name, unit in units.items():
            for port in unit.ports:
                if port.space == Space.CELL:
                    cells.add(name, unit, port)
                else:
                    memories[port.space].add(name, unit, port)
        for sender in range(chip.slices):
            wire, write = getattr(self, f"write_{sender}"), _Write()
            n = chip.bank_bytes
            write.port_en, write.port_addr = Signal(name=f"net_{sender}_en"), Signal(32, name=f"net_{sender}_addr")
            write.port_data, write.port_mask = (
                Signal(8 * n, name=f"net_{sender}_data"),
                Signal(n, name=f"net_{sender}_mask"),
            )
            m.d.comb += [
                write.port_en.eq(wire.en), write.port_addr.eq(wire.addr), write.port_data.eq(wire.data),
                write.port_mask.eq(wire.mask),
            ]  # fmt: skip
            memories[Space.SPAD].add(f"N{sender}", write, Port("port", Space.SPAD, n, True))
        for space, memory in memories.items():
            m.submodules[space.name.lower()] = memory.instance()


class _Write:
    """Signals of the network's write port."""

    port_en: Any
    port_addr: Any
    port_data: Any
    port_mask: Any


class ChipTop(wiring.Component):
    """All slices of a chip: `NAME_R` for each of `slice_members` of slice R, and run, slices in; now out.

    The first `slices` take part.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        members: dict[str, Any] = {"run": In(1), "slices": In(16), "now": Out(TIME_BITS)}
        for r in range(chip.slices):
            members |= {f"{name}_{r}": member for name, member in slice_members(chip).items()}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        n = self.chip.slices
        slices = [Slice(self.chip) for _ in range(n)]
        network = m.submodules.network = Network(self.chip)
        m.d.comb += [self.now.eq(slices[0].now), network.now.eq(slices[0].now), network.slices.eq(self.slices)]
        for r, part in enumerate(slices):
            if n == 1:
                m.submodules[f"slice_{r}"] = part
            else:  # one module for all
                leaf_of(m, "systolith_slice", part)
            for name, member in slice_members(self.chip).items():
                outer, inner = getattr(self, f"{name}_{r}"), getattr(part, name)
                m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)
            m.d.comb += [
                part.run.eq(self.run & (r < self.slices)), part.rank.eq(r), part.slices.eq(self.slices),
                getattr(network, f"send_{r}").eq(part.send), getattr(network, f"message_{r}").eq(part.message),
                getattr(network, f"piece_{r}").eq(part.piece), getattr(network, f"moving_{r}").eq(part.moving),
                part.sent.eq(getattr(network, f"sent_{r}")),
                part.posts.eq(getattr(network, f"posts_{r}")), part.net_idle.eq(getattr(network, f"idle_{r}")),
            ]  # fmt: skip
            m.d.comb += [getattr(part, f"write_{s}").eq(getattr(network, f"write_{s}_{r}")) for s in range(n)]
        return m


_ = (Mux, PORTS)
