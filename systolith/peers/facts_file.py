"""The fitted scalars as a file: on which inputs they were fitted, and those with a device or a model left out."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from systolith.peers.cases import Case
from systolith.peers.model import Scalars
from systolith.spec.errors import ConfigError

__all__ = ["Facts", "packaged", "read_facts"]


@dataclass(frozen=True)
class Facts:
    """Fitted scalars.

    inputs : SHA-256 of each file they were fitted on, by its name.      rows : keys of the rows that were used.
    generations : scalars of each generation.      devices : those that were measured, with their generation.
    middle : median over these devices, for a device of a generation without measurements.
    without_device : for a device that was left out, the median of the others.
    without_model : for a model that was left out, the scalars of each generation, and under "" the median.
    """

    seed: int
    inputs: Mapping[str, str]
    rows: frozenset[str]
    devices: Mapping[str, str]
    generations: Mapping[str, Scalars]
    middle: Scalars
    without_device: Mapping[str, Scalars]
    without_model: Mapping[str, Mapping[str, Scalars]]

    def of(self, case: Case, leave_out: str | None = None) -> tuple[Scalars, str]:
        """The scalars for a case, and where they come from.

        leave_out : "device" or "model": as if the case's own had not been measured.
        """
        key, generation = case.device.key, case.device.generation
        if leave_out == "device" and key in self.without_device:
            return self.without_device[key], f"median of the measured devices without {key}"
        if leave_out == "model" and case.work.name in self.without_model:
            found = self.without_model[case.work.name]
            if generation in found:
                return found[generation], f"fitted on {generation} without {case.work.name}"
            return found[""], f"median of the measured devices without {case.work.name}"
        if generation in self.generations:
            return self.generations[generation], f"fitted on {generation}"
        return self.middle, "median of the measured devices: nothing of this one was measured"

    def to_json(self) -> str:
        """The text of the file."""

        def table(found: Mapping[str, Scalars]) -> dict[str, Any]:
            return {name: asdict(scalars) for name, scalars in found.items()}

        values = {
            "seed": self.seed, "inputs": dict(self.inputs), "devices": dict(self.devices),
            "generations": table(self.generations), "median": asdict(self.middle),
            "without_device": table(self.without_device),
            "without_model": {name: table(found) for name, found in self.without_model.items()},
            "rows": sorted(self.rows),
        }  # fmt: skip
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Facts:
        """Read the text of the file. Raises ConfigError."""
        try:
            values = json.loads(text)

            def table(found: Mapping[str, Mapping[str, float]]) -> dict[str, Scalars]:
                return {name: Scalars(**{k: float(v) for k, v in entry.items()}) for name, entry in found.items()}

            return cls(
                int(values["seed"]), dict(values["inputs"]), frozenset(values["rows"]), dict(values["devices"]),
                table(values["generations"]), Scalars(**values["median"]), table(values["without_device"]),
                {name: table(found) for name, found in values["without_model"].items()},
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{source}: holds no fitted scalars ({what}); give a file of systolith fit") from None


def read_facts(path: Path | None) -> tuple[Facts, str]:
    """Fitted scalars of a file, or those of the package, and the text they were read from. Raises ConfigError."""
    if path is None:
        return packaged()
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a file of systolith fit") from None
    return Facts.from_json(text, str(path)), text


@functools.cache
def packaged() -> tuple[Facts, str]:
    """Those of the package."""
    text = resources.files("systolith.peers").joinpath("facts/fitted.json").read_text(encoding="utf-8")
    return Facts.from_json(text, "the packaged facts"), text
