// Runs a chip: its memory as plain bytes, its events, its words to the host. One build a chip; SLICES and PIECE are
// given by the build, PORTS(R) joins the ports of slice R by name.
#include "Vsystolith.h"
#include "svdpi.h"
#include "verilated.h"
#ifdef TRACE
#include "verilated_vcd_c.h"
#endif
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "ports.h"

namespace {

constexpr int QUEUES = 6;

struct Event {
    int64_t slice, queue, pc, start, end;
    int64_t waited, lacked;         // cycles at the head of its queue; whether a token was missing in the last of them
};

struct Write {                      // bytes that a port has written in a cycle; `mask` has a bit for each
    int64_t cycle;
    int32_t slice, owner, space;    // owner: a queue, or 8 + the slice that has sent it
    uint32_t mask;
    uint64_t address;
    uint8_t data[32];
};

struct Slice {
    uint8_t* dram = nullptr;
    uint64_t size = 0;
    bool outside = false;           // an access beyond the memory
    uint8_t read[2][PIECE] = {};    // data of the requests of the cycle before
    bool has[2] = {};
    std::deque<size_t> open[QUEUES];
    int64_t waited[QUEUES] = {}, lacked[QUEUES] = {};
    std::vector<int64_t> rings;     // length, then words, for each record
    std::vector<int32_t> record;
    uint64_t records = 0;
    bool halted = false;
};

struct Random {                     // xorshift: one draw a slice and cycle, whatever the chip does
    uint64_t s;
    uint64_t next() {
        s ^= s << 13; s ^= s >> 7; s ^= s << 17;
        return s;
    }
};

bool traces(VerilatedContext& context) {  // before the model is made
#ifdef TRACE
    context.traceEverOn(true);
    return true;
#else
    return false;
#endif
}

void dump(struct Chip& c, int half);

struct Chip {
    VerilatedContext context;
    bool traced = traces(context);
    Vsystolith top;
#ifdef TRACE
    VerilatedVcdC wave;
#endif
    int64_t wave_from = 0, wave_to = -1;
    Slice slices[SLICES];
    std::vector<Event> events;
    std::vector<Write> writes;
    std::vector<std::pair<svScope, int>> scopes;  // the slice that a memory belongs to
    bool keep_events = true, keep_writes = false;
    int64_t cycles = 0, now = 0;
    Random random{0x9E3779B97F4A7C15ull};
    uint32_t hold_share = 0;        // of 256: how often the memory channel, the network, the host hold
    int64_t counters[SLICES][QUEUES + 8] = {};
    Chip() : top{&context, "top"} {}
};

void dump(Chip& c, int half) {
#ifdef TRACE
    if (c.now >= c.wave_from && c.now <= c.wave_to) c.wave.dump(2 * c.now + half);
#endif
}

void read_memory(Slice& s, int port, uint64_t address, unsigned bytes) {
    if (address + bytes > s.size) s.outside = true;
    for (int i = 0; i < PIECE; i++) s.read[port][i] = address + i < s.size ? s.dram[address + i] : 0;
    s.has[port] = true;
}

Chip* running = nullptr;            // whose clock goes: a call from the Verilog belongs to it

int slice_of(svScope scope) {
    for (auto& known : running->scopes)
        if (known.first == scope) return known.second;
    // slice_R, or the number of the leaf's instance: NAME, NAME_1, ...
    std::string name = svGetNameFromScope(scope);
    int r = 0;
    for (int i = SLICES - 1; i > 0; i--)
        if (name.find(".slice_" + std::to_string(i) + ".") != std::string::npos) r = i;
    running->scopes.push_back({scope, r});
    return r;
}

void journal(Chip& c, int slice, int owner, int space, uint64_t address, const uint8_t* data, uint64_t mask, int bytes) {
    for (int low = 0; low < bytes; low += 32) {
        uint32_t part = mask >> low;
        if (low + 32 > bytes && bytes - low < 32) part &= (1u << (bytes - low)) - 1;
        if (!part) continue;
        c.writes.push_back({c.now, slice, owner, space, part, address + low, {}});
        memcpy(c.writes.back().data, data + low, bytes - low < 32 ? bytes - low : 32);
    }
}

void write_memory(Slice& s, uint64_t address, const uint8_t* data, uint64_t mask) {
    for (int i = 0; i < PIECE; i++)
        if (mask >> i & 1) {
            if (address + i < s.size) s.dram[address + i] = data[i];
            else s.outside = true;
        }
}

void clock_edge(Chip& c) {
    running = &c;
    c.top.eval();  // inputs, and the clock low
    c.top.clk = 1;
    c.top.eval();
    c.top.clk = 0;
}

}  // namespace

extern "C" {

void systolith_write(int owner, int space, unsigned address, const svBitVecVal* data, unsigned mask) {
    if (running && running->keep_writes && mask)
        journal(*running, slice_of(svGetScope()), owner, space, address, reinterpret_cast<const uint8_t*>(data), mask, 32);
}

void* chip_new() {
    Chip* c = new Chip;
    c->top.rst = 1; c->top.clk = 0; c->top.run = 0; c->top.slices = SLICES;
    c->top.eval();
    for (int i = 0; i < 3; i++) clock_edge(*c);
    c->top.rst = 0;
    c->top.eval();
    return c;
}

void chip_free(void* h) { delete static_cast<Chip*>(h); }

void chip_memory(void* h, int r, uint8_t* data, uint64_t size) {
    Chip& c = *static_cast<Chip*>(h);
    c.slices[r].dram = data;
    c.slices[r].size = size;
}

// kind 0: word (16 bytes), 1: descriptor constant (48 bytes), 2: count of a semaphore (16 bytes)
void chip_load(void* h, int r, int kind, int address, const uint8_t* data) {
    Chip& c = *static_cast<Chip*>(h);
#define LOAD(R)                                                                         \
    if (r == R) {                                                                       \
        c.top.load_addr_##R = address;                                                  \
        c.top.word_we_##R = kind == 0; c.top.const_we_##R = kind == 1; c.top.sem_we_##R = kind == 2; \
        if (kind == 1) memcpy(c.top.const_data_##R.data(), data, sizeof(uint32_t) * ((CONST_BITS + 31) / 32)); \
        else memcpy(c.top.word_data_##R.data(), data, 16);                              \
        clock_edge(c);                                                                  \
        c.top.word_we_##R = 0; c.top.const_we_##R = 0; c.top.sem_we_##R = 0;            \
    }
    EACH_SLICE(LOAD)
}

void chip_options(void* h, int slices, uint64_t seed, uint32_t hold_share, int keep_events, int keep_writes) {
    Chip& c = *static_cast<Chip*>(h);
    c.top.slices = slices;
    c.random.s = seed * 0x9E3779B97F4A7C15ull + 0x1234567ull;
    c.hold_share = hold_share;
    c.keep_events = keep_events;
    c.keep_writes = keep_writes;
    for (int i = 0; i < 2; i++) clock_edge(c);  // rank and slices into the registers
}

// Runs till all slices have halted (1), slice 0 has sent `records` records (2), `limit` cycles are over (0), a slice has
// a fault (3) or an access lies outside the memory (4).
int chip_run(void* h, int slices, int64_t limit, uint64_t records) {
    Chip& c = *static_cast<Chip*>(h);
    auto& top = c.top;
    top.run = 1;
    running = &c;
    while (true) {
        // Inputs of this cycle, then its outputs.
        for (int r = 0; r < slices; r++) {
            Slice& s = c.slices[r];
            uint64_t die = c.random.next();
            bool hold = (die >> 24 & 255) < c.hold_share, net = (die >> 32 & 255) < c.hold_share;
            bool host = (die >> 40 & 255) < c.hold_share;
#define INPUTS(R)                                                                       \
    if (r == R) {                                                                       \
        top.hold_##R = hold; top.hold_net_##R = net; top.hold_host_##R = host;          \
        if (s.has[0]) memcpy(top.m_W_data_##R.data(), s.read[0], PIECE);                \
        if (s.has[1]) memcpy(top.m_L_data_##R.data(), s.read[1], PIECE);                \
    }
            EACH_SLICE(INPUTS)
        }
        top.eval();
        int64_t now = c.now = top.now;
        dump(c, 0);
        bool all = true;
        int fault = 0;
        for (int r = 0; r < slices; r++) {
            Slice& s = c.slices[r];
            s.has[0] = s.has[1] = false;
            int64_t* counter = c.counters[r];
#define QUEUE(R, N, Q)                                                                  \
    {                                                                                   \
        int ended = top.ended_##Q##_##R;                                                \
        if (ended && c.keep_events)                                                     \
            for (int i = 0; i < ended; i++) { c.events[s.open[N].front()].end = now; s.open[N].pop_front(); } \
        if (top.started_##Q##_##R && c.keep_events) {                                   \
            s.open[N].push_back(c.events.size());                                       \
            c.events.push_back({R, N, top.pc_##Q##_##R, now, -1, s.waited[N], s.lacked[N]}); \
            s.waited[N] = s.lacked[N] = 0;                                              \
        } else if (top.queued_##R >> N & 1) {                                           \
            s.waited[N]++; s.lacked[N] = top.waits_##R >> N & 1;                        \
        }                                                                               \
        if (top.waits_##R >> N & 1) counter[N]++;                                       \
    }
#define OUTPUTS(R)                                                                      \
    if (r == R) {                                                                       \
        if (top.m_W_en_##R) read_memory(s, 0, top.m_W_addr_##R, top.m_W_bytes_##R);                        \
        if (top.m_L_en_##R) read_memory(s, 1, top.m_L_addr_##R, top.m_L_bytes_##R);                        \
        if (top.m_S_en_##R && c.keep_writes)                                            \
            journal(c, R, 4, 0, top.m_S_addr_##R, reinterpret_cast<const uint8_t*>(top.m_S_data_##R.data()), top.m_S_mask_##R, PIECE); \
        if (top.m_S_en_##R)                                                             \
            write_memory(s, top.m_S_addr_##R, reinterpret_cast<const uint8_t*>(top.m_S_data_##R.data()), top.m_S_mask_##R); \
        if (top.ring_words_##R) {                                                       \
            const int32_t* words = reinterpret_cast<const int32_t*>(top.ring_data_##R.data()); \
            for (unsigned i = 0; i < top.ring_words_##R; i++) s.record.push_back(words[i]); \
            if (top.ring_last_##R) {                                                    \
                s.rings.push_back(s.record.size());                                     \
                for (int32_t w : s.record) s.rings.push_back(w);                        \
                s.record.clear();                                                       \
                s.records++;                                                            \
            }                                                                           \
        }                                                                               \
        QUEUE(R, 0, W) QUEUE(R, 1, L) QUEUE(R, 2, M) QUEUE(R, 3, V) QUEUE(R, 4, S) QUEUE(R, 5, C) \
        counter[6] += top.full_stall_##R; counter[7] += top.bus_busy_##R; counter[8] += top.issued_##R; \
        s.halted = top.halted_##R;                                                      \
        if (top.fault_##R) fault = 1;                                                   \
    }
            EACH_SLICE(OUTPUTS)
            all = all && s.halted;
            if (s.outside) fault = 2;
        }
        top.clk = 1;
        top.eval();
        dump(c, 1);
        top.clk = 0;
        c.cycles++;
        if (fault) return fault == 1 ? 3 : 4;
        if (all) return 1;
        if (c.slices[0].records >= records) return 2;
        if (--limit <= 0) return 0;
    }
}

// Writes a waveform of the cycles first .. last to a file; 0 where the build cannot.
int chip_trace(void* h, const char* path, int64_t first, int64_t last) {
#ifdef TRACE
    Chip& c = *static_cast<Chip*>(h);
    if (last < first) { c.wave.close(); return 1; }
    c.top.trace(&c.wave, 99);
    c.wave.open(path);
    c.wave_from = first; c.wave_to = last;
    return 1;
#else
    return 0;
#endif
}

int64_t chip_events(void* h, Event** data) {
    Chip& c = *static_cast<Chip*>(h);
    *data = c.events.data();
    return c.events.size();
}

int64_t chip_writes(void* h, Write** data) {
    Chip& c = *static_cast<Chip*>(h);
    *data = c.writes.data();
    return c.writes.size();
}

// Switches on a fault of a text that `rtl.faults` made, 0: none; gives 0 where there is none to choose.
int chip_fault(void* h, int number) {
#ifdef FAULTS
    static_cast<Chip*>(h)->top.systolith_fault = number;
    return 1;
#else
    return 0;
#endif
}

void chip_forget(void* h) { static_cast<Chip*>(h)->writes.clear(); }

int64_t chip_rings(void* h, int r, int64_t** data) {
    Chip& c = *static_cast<Chip*>(h);
    *data = c.slices[r].rings.data();
    return c.slices[r].rings.size();
}

void chip_look(void* h, int r, int space, uint32_t address, uint8_t* data) {
    Chip& c = *static_cast<Chip*>(h);
#define LOOK(R)                                                                         \
    if (r == R) {                                                                       \
        c.top.look_##R = 1; c.top.look_space_##R = space; c.top.look_addr_##R = address; \
        for (int i = 0; i < LATENCY; i++) clock_edge(c);               \
        c.top.eval();                                                                   \
        memcpy(data, c.top.look_data_##R.data(), PIECE);                                \
        c.top.look_##R = 0;                                                             \
    }
    EACH_SLICE(LOOK)
}

void chip_status(void* h, int r, int64_t* out) {
    Chip& c = *static_cast<Chip*>(h);
    out[4] = c.cycles;
    for (int i = 0; i < QUEUES + 8; i++) out[5 + i] = c.counters[r][i];
#define STATUS(R)                                                                       \
    if (r == R) {                                                                       \
        out[0] = c.top.halted_##R; out[1] = c.top.cause_##R; out[2] = c.top.halt_time_##R; out[3] = c.top.fault_##R; \
    }
    EACH_SLICE(STATUS)
}

}  // extern "C"
