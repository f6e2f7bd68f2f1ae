"""Arguments and options that several commands share, and how they are read."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from systolith.cli._console import warn
from systolith.spec import Chip, ConfigError, load

if TYPE_CHECKING:
    from systolith.models.checkpoint import Checkpoint
    from systolith.models.profile import Profile

TINYCODE = "tinycode"

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hugging Face directory, or tinycode, the model of the package.")
]
ChipOption = Annotated[str, typer.Option("--chip", help="Name of a chip, or path of a chip file.")]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", help="Numerics profile in TOML, instead of the three format options.")
]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="Format of weights: MXINT8 (default), MXFP8, MXFP4 or MXINT8x2.")
]
ActivationsOption = Annotated[
    str | None, typer.Option("--activations", help="Format of activations: MXINT8 (default), MXFP8 or MXFP4.")
]
KvOption = Annotated[
    str | None, typer.Option("--kv", help="Format of cached keys and values: MXINT8 (default), MXFP8 or MXFP4.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
PageOption = Annotated[int, typer.Option("--page-tokens", help="Tokens of a KV cache page: 32, 64, 128 or 256.")]
PrefillOption = Annotated[
    int | None,
    typer.Option("--prefill-chunk", min=1, help="Most prompt tokens of a request in one step (default: what fits)."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="What runs the program: sim, execute, rtl or null.")]

_FORMATS = {"MXINT8": "INT8", "MXFP8": "E4M3", "MXFP4": "E2M1", "MXINT8X2": "INT8x2", "INT8X2": "INT8x2"}


def format_name(text: str) -> str:
    """The element format that a user means: MXINT8 and INT8 are one."""
    return _FORMATS.get(text.upper(), text.upper())


def open_chip(name: str) -> Chip:
    """Load a chip; warnings go to stderr."""
    chip = load(name)
    for sentence in chip.warnings:
        warn(sentence)
    return chip


def open_model(name: str) -> Checkpoint:
    """Open a model directory; `tinycode` is the packaged one, `./tinycode` a directory."""
    from systolith.models.checkpoint import Checkpoint

    path = Path(name)
    if name == TINYCODE:
        path = Path(str(resources.files("systolith.models"))) / TINYCODE
    return Checkpoint.open(path)


def open_profile(file: Path | None, weights: str | None, activations: str | None, kv: str | None) -> Profile:
    """The profile of the options."""
    from systolith.models.profile import Profile

    if file is not None:
        given = [name for name, v in (("--weights", weights), ("--activations", activations), ("--kv", kv)) if v]
        if given:
            raise ConfigError(f"--profile and {' and '.join(given)} say the same thing twice; give one of them")
        return Profile.from_toml(file)
    names = [format_name(v) if v else "INT8" for v in (weights, activations, kv)]
    return Profile.default(*names)


def read_ids(text: str) -> tuple[int, ...]:
    """Token ids: `1,2,3` as they stand, or a file that holds them, apart by commas or blanks."""
    if re.fullmatch(r"[\d,\s]*\d[\d,\s]*", text):
        source, body = "--prompt-ids", text
    else:
        source = text
        try:
            body = Path(text).read_bytes().decode("utf-8")
        except OSError as error:
            raise ConfigError(
                f"--prompt-ids: {text!r} is neither token ids such as 1,2,3 nor a file that can be read "
                f"({error.strerror}); give one of them"
            ) from None
        except ValueError:
            raise ConfigError(f"{text}: is not UTF-8 text; give token ids such as 1,2,3") from None
    ids = []
    for word in body.replace(",", " ").split():
        if not re.fullmatch(r"\d{1,10}", word):
            raise ConfigError(f"{source}: {word[:40]!r} is no token id; give whole numbers such as 1,2,3")
        ids.append(int(word))
    return tuple(ids)


def read_text(path: Path, what: str) -> str:
    """A UTF-8 text file. Raises ConfigError in one sentence."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {what} cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} of {what} is not UTF-8; give UTF-8 text") from None


def check_pages(page_tokens: int) -> None:
    """Refuse a page size that does not divide a chunk of attention."""
    if page_tokens not in (32, 64, 128, 256):
        raise ConfigError(f"--page-tokens={page_tokens} must be 32, 64, 128 or 256; take one of them")
