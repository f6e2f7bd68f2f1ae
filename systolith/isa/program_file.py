"""The program file: `SYSTOLITH\\0`, version, header, sections, SHA-256 over all of it.

    magic 10 bytes | version u16 | header bytes u64 | header (JSON) | section ... | SHA-256 of everything before

Integers are little-endian. The header names each section with its length: words, constants, lines, then one for each
image. A byte that differs anywhere makes the digest differ, so a damaged file is never run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from systolith.spec import WORD_BYTES, ProgramError

from .descriptor import DESCRIPTOR_BYTES, pack, unpack
from .program import Image, Program, Requires

__all__ = ["FILE_VERSION", "MAGIC", "load", "save"]

MAGIC: Final = b"SYSTOLITH\0"
FILE_VERSION: Final = 1
_FIXED: Final = len(MAGIC) + 2 + 8
_DIGEST: Final = 32


def save(program: Program, path: Path) -> None:
    """Write a program file whole or not at all: a temporary file beside it, then a rename."""
    sections = [
        b"".join(word.to_bytes(WORD_BYTES, "little") for word in program.words),
        b"".join(pack(d).to_bytes(DESCRIPTOR_BYTES, "little") for d in program.constants),
        "\n".join(program.lines).encode(),
        *(image.data for image in program.images),
    ]
    header = json.dumps(
        {
            "name": program.name,
            "sem_init": program.sem_init,
            "requires": asdict(program.requires),
            "meta": program.meta,
            "images": [(image.slice, image.address) for image in program.images],
            "sections": [len(section) for section in sections],
        },
        sort_keys=True,
    ).encode()
    start = MAGIC + FILE_VERSION.to_bytes(2, "little") + len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256()
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            for part in (start, *sections):
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise ProgramError(
            f"{path}: the program cannot be written ({error.strerror}); free space or take another path."
        ) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def load(path: Path) -> Program:
    """Read a program file; every fault is one sentence that names the file, what is wrong and what to do."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProgramError(f"{path}: the program file cannot be read ({error.strerror}); check the path.") from None
    if not data.startswith(MAGIC):
        raise ProgramError(f"{path}: this is no Systolith program; `systolith compile MODEL -o FILE` makes one.")
    if len(data) < _FIXED + _DIGEST:
        raise ProgramError(
            f"{path}: the file ends after {len(data)} bytes, inside its header; copy or compile it again."
        )
    version = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 2], "little")
    if version != FILE_VERSION:
        raise ProgramError(
            f"{path}: the file has format version {version}, this Systolith reads {FILE_VERSION}; compile it again."
        )
    body = memoryview(data)[:-_DIGEST]
    if hashlib.sha256(body).digest() != data[-_DIGEST:]:
        raise ProgramError(
            f"{path}: the checksum over {len(data)} bytes does not match, so the file is damaged or cut short; "
            "copy or compile it again."
        )
    try:
        return _parse(body)
    except ProgramError as error:
        raise ProgramError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProgramError(
            f"{path}: the header is not one that this Systolith writes, though its checksum is right; compile it again."
        ) from None


def _parse(body: memoryview) -> Program:
    """Read what the digest covers."""
    header_end = _FIXED + int.from_bytes(body[len(MAGIC) + 2 : _FIXED], "little")
    header: dict[str, Any] = json.loads(bytes(body[_FIXED:header_end]))
    sections, at = [], header_end
    for length in header["sections"]:
        sections.append(bytes(body[at : at + length]))
        at += length
    if at != len(body):
        raise ValueError(at)
    words, constants, lines, *images = sections
    requires = header["requires"]
    return Program(
        name=header["name"],
        words=tuple(_integers(words, WORD_BYTES)),
        constants=tuple(map(unpack, _integers(constants, DESCRIPTOR_BYTES))),
        sem_init=tuple(header["sem_init"]),
        requires=Requires(**requires | {"pairs": tuple(requires["pairs"])}),
        lines=tuple(lines.decode().split("\n")) if lines else (),
        meta=header["meta"],
        images=tuple(
            Image(rank, address, data) for (rank, address), data in zip(header["images"], images, strict=True)
        ),
    )


def _integers(data: bytes, size: int) -> list[int]:
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
