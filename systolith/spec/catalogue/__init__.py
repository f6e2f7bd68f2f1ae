"""The named chips, one TOML file each, and `load`, which takes a name or the path of a user's file."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Final

from ..chip import Chip, build
from ..config import ChipConfig, nearest
from ..errors import ConfigError

__all__ = ["NAMES", "load"]

NAMES: Final = ("nano", "micro", "mini", "slice64", "server", "server-sram")
"""The named chips, smallest first. Each is a row in CI."""


def load(name_or_path: str | Path) -> Chip:
    """Load a named chip, or a chip file where the text ends in .toml or has a path separator.

    A file may extend a named chip: `base = "server"` and the fields that differ; its name is then its own `name`
    or the file's stem.
    Raises ConfigError: unknown name, unreadable file, or every fault of the file at once.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        return _load_file(Path(name_or_path))
    return build(*_named(text, f"chip {text!r}"))


def _named(name: str, asked: str) -> tuple[dict[str, object], str, ChipConfig | None]:
    """Return what `build` wants for a named chip; `asked` begins the sentence if there is no such chip."""
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise ConfigError(
            f"{asked} is not known{nearest(name, NAMES)}; named chips are {known}, or give the path of a .toml file."
        )
    raw = _parse((resources.files(__package__) / f"{name}.toml").read_bytes(), name)
    return _split(raw, name, name)


def _load_file(path: Path) -> Chip:
    """Load a user's chip file."""
    where = path.name
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise ConfigError(f"{path}: the chip file cannot be read ({reason}); check the path.") from None
    return build(*_split(_parse(data, where), where, path.stem))


def _parse(data: bytes, where: str) -> dict[str, object]:
    """Parse TOML; numbers with a point become exact rationals."""
    try:
        return tomllib.loads(data.decode("utf-8"), parse_float=_exact)
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: the chip file is not UTF-8 text; write it as TOML.") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        reason = str(error).strip().rstrip(".") or "nested too deeply"
        raise ConfigError(f"{where}: the chip file is not TOML: {reason}.") from None


def _exact(text: str) -> Fraction | str:
    """Keep a TOML float exact; leave what is no finite number, or absurdly large, as text, which no field takes."""
    if len(text) > 60:
        return text
    try:
        mantissa, _, exponent = text.replace("_", "").lower().partition("e")
        return Fraction(mantissa) * Fraction(10) ** int(exponent or 0) if abs(int(exponent or 0)) <= 40 else text
    except ValueError:
        return text


def _split(raw: dict[str, object], where: str, stem: str) -> tuple[dict[str, object], str, ChipConfig | None]:
    """Take `base` out of a file's mapping and give the chip a name."""
    raw = {"name": stem} | raw
    if "base" not in raw:
        return raw, where, None
    base = raw.pop("base")
    if not isinstance(base, str):
        raise ConfigError(f"{where}: base={base!r} must be the name of a chip, one of {', '.join(NAMES)}.")
    return raw, where, build(*_named(base, f"{where}: base={base!r}")).config
