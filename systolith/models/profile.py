"""The numerics profile of a model: formats, spans and attention lanes, the same on every chip.

Source: NUMERICS, "Profile". It is a record in the program file and a TOML file for those who set it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeGuard

from systolith.models._text import did_you_mean, show
from systolith.models.graph import ModelGraph, default_lanes
from systolith.models.ops import MATRICES
from systolith.numerics.formats import ELEMENT_FORMATS, PAIRS
from systolith.spec.errors import ConfigError

__all__ = ["SPANS", "TWO_TERMS", "Profile"]

TWO_TERMS = "INT8x2"
"""Two-term MXINT8: W1 = quantise(W), W2 = quantise(W - W1); for `weights`, `experts` and `router` only."""

SPANS = MATRICES
"""Tensor classes whose contraction may be cut into spans."""

_EXPERT_SPANS = ("router", "expert_gate", "expert_up", "expert_down")
_MAY_BE_TWO_TERMS = ("weights", "experts", "router")
_FORMAT_KEYS = ("weights", "activations", "k", "v", "p", "head", "embed", "experts", "router")
_KEYS = (*_FORMAT_KEYS, "lanes", "deferred_norm", "spans", "attention")
_PAIRS = (
    ("activations", "weights"), ("activations", "head"), ("k", "k"), ("p", "v"), ("activations", "experts"),
    ("activations", "router"),
)  # fmt: skip
_MAX_LANES = 1024
_MAX_SPANS = 1024
_MAX_WINDOW = 1 << 24


@dataclass(frozen=True)
class Profile:
    """How a model's numbers are rounded.

    weights, head, embed : matrices, the head's matrix, the embedding table.  activations : operands that meet a weight.
    experts, router : matrices of the experts and of the router that chooses among them; "" takes the default, the
    format of `weights` and, for the router, INT8x2 with INT8 activations, else the format of the activations.
    k, v, p : cached keys (and queries), cached values, probabilities.
    lanes : attention lanes R, a power of two; None is the default that follows from the KV heads (`resolved`).
    deferred_norm : whether RMSNorm before a matmul multiplies after it.
    spans : runs that a contraction is cut into, for each of SPANS.
    window, sink : test instruments, not part of a model: a sliding window in tokens for every layer, and a sink, one
    number or one a query head; None leaves both to the model.
    """

    weights: str = "INT8"
    activations: str = "INT8"
    k: str = "INT8"
    v: str = "INT8"
    p: str = "INT8"
    head: str = "INT8"
    embed: str = "INT8"
    experts: str = ""
    router: str = ""
    lanes: int | None = None
    deferred_norm: bool = True
    spans: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SPANS, 1))
    window: int | None = None
    sink: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "spans", {**dict.fromkeys(SPANS, 1), **self.spans})
        for name, default in _expert_formats(self.weights, self.activations).items():
            object.__setattr__(self, name, getattr(self, name) or default)
        faults = _faults({f.name: getattr(self, f.name) for f in fields(self)})
        if faults:
            raise _refuse("profile", faults)

    def __hash__(self) -> int:
        return hash(self.to_json())

    @staticmethod
    def default(weights: str = "INT8", activations: str = "INT8", kv: str = "INT8") -> Profile:
        """Profile for a choice of weights, activations and KV cache; the rest follows.

        The head has the format of the activations (the best that pairs with them), the embedding that of the head, so
        that a tied table is one tensor; P is INT8, or E4M3 with E4M3 values, which pair with nothing else.
        Raises ConfigError for a format that does not exist or a pair that is not built.
        """
        return Profile.from_dict({"weights": weights, "activations": activations, "k": kv, "v": kv})

    @staticmethod
    def from_dict(table: Mapping[str, object], source: str = "profile") -> Profile:
        """Read a table as TOML or JSON gives it. Raises ConfigError with every fault in one sentence.

        A format that is left out takes its default: INT8 for weights, activations, k and v; p, head and embed as in
        `default`.
        """
        faults = [
            f"{show(key)[1:-1]}={show(value)} is no known key{did_you_mean(key, _KEYS)}, known are {', '.join(_KEYS)}"
            for key, value in table.items()
            if key not in _KEYS
        ]
        chosen: dict[str, object] = {key: table.get(key, "INT8") for key in ("weights", "activations", "k", "v")}
        chosen["p"] = table.get("p", "E4M3" if chosen["v"] == "E4M3" else "INT8")
        chosen["head"] = table.get("head", _legal(chosen["activations"]))
        chosen["embed"] = table.get("embed", _legal(chosen["head"]))
        for name, default in _expert_formats(chosen["weights"], chosen["activations"]).items():
            chosen[name] = table.get(name, default)
        for key in ("lanes", "deferred_norm"):
            if key in table:
                chosen[key] = table[key]
        chosen["spans"] = _subtable(table, "spans", SPANS, faults)
        chosen |= _subtable(table, "attention", ("window", "sink"), faults)
        if isinstance(chosen.get("sink"), list):
            chosen["sink"] = tuple(chosen["sink"])  # type: ignore[arg-type]
        faults += _faults({**_DEFAULTS, **chosen})
        if faults:
            raise _refuse(source, faults)
        return Profile(**chosen)  # type: ignore[arg-type]

    @staticmethod
    def from_toml(path: str | Path) -> Profile:
        """Read a TOML file. Raises ConfigError in one sentence."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"{path}: cannot be read ({reason}); give a numerics profile in TOML") from None
        try:
            table = tomllib.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: byte {error.start} is not UTF-8; correct the file") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: is not valid TOML ({error}); correct the file") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: is not valid TOML ({type(error).__name__}); correct the file") from None
        return Profile.from_dict(table, str(path))

    def to_dict(self) -> dict[str, object]:
        """The record as plain values; `from_dict` gives it back. Overrides and lanes that are not set are left out, and
        so is what concerns experts where it has its default: a profile keeps the text it had before there were any."""
        defaults = _expert_formats(self.weights, self.activations)
        table: dict[str, object] = {
            key: getattr(self, key) for key in _FORMAT_KEYS if getattr(self, key) != defaults.get(key)
        }
        spans = {key: value for key, value in self.spans.items() if value != 1 or key not in _EXPERT_SPANS}
        table |= {"deferred_norm": self.deferred_norm, "spans": spans}
        if self.lanes is not None:
            table["lanes"] = self.lanes
        sink = list(self.sink) if isinstance(self.sink, tuple) else self.sink
        attention = {key: value for key, value in (("window", self.window), ("sink", sink)) if value is not None}
        return table | ({"attention": attention} if attention else {})

    def to_json(self) -> str:
        """Canonical JSON: keys in order, no spaces. Equal profiles have equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def resolved(self, graph: ModelGraph) -> Profile:
        """The profile for one model: lanes filled in, everything that depends on the model checked.

        Raises ConfigError if a tied table or a latent is to have two formats, a latent a window or a sink, or if there
        are not as many sinks as query heads.
        """
        faults = []
        if graph.tied and self.head != self.embed:
            faults.append(
                f'head="{self.head}" and embed="{self.embed}" must be equal, {graph.name} ties the two tables'
            )
        if graph.latent and self.k != self.v:
            faults.append(
                f'k="{self.k}" and v="{self.v}" must be equal, {graph.name} keeps one latent that is key and value'
            )
        faults += [
            f"attention.{name}={show(value)} must be left out, {graph.name} has latent attention, which knows none"
            for name, value in (("window", self.window), ("sink", self.sink))
            if graph.latent and value is not None
        ]
        if isinstance(self.sink, tuple) and len(self.sink) != graph.heads:
            faults.append(
                f"attention.sink has {len(self.sink)} values, must have one for each of {graph.heads} query heads"
            )
        if faults:
            raise _refuse("profile", faults)
        return self if self.lanes is not None else replace(self, lanes=default_lanes(graph.kv_heads))

    def sinks(self, heads: int) -> tuple[float, ...] | None:
        """The sink override, one value a query head, or None."""
        if self.sink is None:
            return None
        return self.sink if isinstance(self.sink, tuple) else (self.sink,) * heads

    def apply(self, graph: ModelGraph) -> ModelGraph:
        """The graph with the window override in every attention node; the same graph if there is none."""
        return graph if self.window is None else graph.with_attr("attention", window=self.window)


def _expert_formats(weights: object, activations: object) -> dict[str, object]:
    """Formats of experts and router where a profile does not give them."""
    return {"experts": weights, "router": TWO_TERMS if activations == "INT8" else _legal(activations)}


_DEFAULTS: dict[str, object] = {f.name: f.default for f in fields(Profile) if f.name != "spans"}


def _legal(value: object) -> object:
    """A format to derive another from: a wrong one is told once, where it stands."""
    return value if isinstance(value, str) and value in ELEMENT_FORMATS else "INT8"


def _refuse(source: str, faults: Sequence[str]) -> ConfigError:
    return ConfigError(f"{source}: " + "; ".join(faults) + "; correct the profile")


def _subtable(table: Mapping[str, object], name: str, known: Sequence[str], faults: list[str]) -> dict[str, object]:
    """A table inside the profile, with faults for what it should not hold."""
    value = table.get(name, {})
    if not isinstance(value, dict):
        faults.append(f"{name}={show(value)} must be a table with the keys {', '.join(known)}")
        return {}
    for key in value:
        if key not in known:
            hint = did_you_mean(key, known)
            faults.append(f"{name}.{show(key)[1:-1]} is no known key{hint}, known are {', '.join(known)}")
    return {key: value[key] for key in known if key in value}


def _faults(values: Mapping[str, object]) -> list[str]:
    """Everything that is wrong with the fields of a profile, whatever their types; `spans` is a dict."""
    formats = ", ".join(ELEMENT_FORMATS)
    faults = []
    legal: set[str] = set()
    for key in _FORMAT_KEYS:
        value = values[key]
        if isinstance(value, str) and (value in ELEMENT_FORMATS or (key in _MAY_BE_TWO_TERMS and value == TWO_TERMS)):
            legal.add(key)
        elif key != "experts" or value != values["weights"]:  # a default is told where it comes from
            also = f" or {TWO_TERMS}" if key in _MAY_BE_TWO_TERMS else ""
            faults.append(f"{key}={show(value)} must be one of {formats}{also}")
    for a, b in _PAIRS:
        if not {a, b} <= legal or (b == "experts" and values[b] == values["weights"]):
            continue
        first, second = values[a], values[b]
        if (first, "INT8" if second == TWO_TERMS else second) not in PAIRS:
            allowed = ", ".join("x".join(pair) for pair in PAIRS)
            faults.append(f'{a}="{first}" with {b}="{second}" must be one of the pairs {allowed}')
    lanes = values["lanes"]
    if lanes is not None and not (_count(lanes, _MAX_LANES) and lanes & (lanes - 1) == 0):
        faults.append(f"lanes={show(lanes)} must be a power of two 1..{_MAX_LANES}, or left out")
    if not isinstance(values["deferred_norm"], bool):
        faults.append(f"deferred_norm={show(values['deferred_norm'])} must be true or false")
    spans = values["spans"]
    assert isinstance(spans, dict)
    for key, value in spans.items():
        if key not in SPANS:
            faults.append(f"spans.{key} is no known key, known are {', '.join(SPANS)}")
        elif not _count(value, _MAX_SPANS):
            faults.append(f"spans.{key}={show(value)} must be an integer 1..{_MAX_SPANS}")
    if values["window"] is not None and not _count(values["window"], _MAX_WINDOW):
        faults.append(f"attention.window={show(values['window'])} must be an integer 1..{_MAX_WINDOW}")
    sink = values["sink"]
    if sink is not None:
        entries = sink if isinstance(sink, tuple) else (sink,)
        if not entries or not all(_finite(entry) for entry in entries):
            faults.append(
                f"attention.sink={show(sink)} must be a finite FP32 number or a list with one for each query head"
            )
    return faults


def _count(value: object, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _finite(value: object) -> bool:
    """Whether a value is a number that FP32 holds without overflow."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -3e38 <= value <= 3e38
