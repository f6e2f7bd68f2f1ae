"""Rotary scaling: what config.json says of it, as one record, and the frequencies and tables that follow.

In a graph the record stands as its canonical JSON text, the attribute `scaling` of `rope`; none is the plain embedding.
The rules are in docs/numerics.md, rule 5.

Source: the fields of `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5.23) of the types linear,
llama3 and yarn.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

from systolith.models._text import did_you_mean, show
from systolith.models.config import REQUIRED, Field
from systolith.numerics import constants

__all__ = ["RopeScaling", "frequencies", "read_rope", "tables", "yarn_mscale"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """A rotary scaling. Numbers are binary64 as in the config; those that a kind does not use keep their default.

    kind : "linear", "llama3" or "yarn".     factor : of the context, about.     original_context : tokens, of training.
    low_freq_factor, high_freq_factor : turns in that context between which llama3 goes from one rule to the other.
    beta_fast, beta_slow, truncate, attention_factor : of YaRN; attention_factor None: 0.1 ln(factor) + 1.
    """

    kind: str
    factor: float
    original_context: int = 0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    truncate: bool = True
    attention_factor: float | None = None

    @property
    def text(self) -> str:
        """Canonical JSON: keys in order, no spaces. Equal records have equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> RopeScaling:
        """Read `text` again. Raises ValueError for anything else."""
        try:
            table = json.loads(text)
            record = RopeScaling(**table)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("is no rotary scaling") from None
        if record.kind not in ("linear", "llama3", "yarn") or record.text != text:
            raise ValueError("is no rotary scaling")
        return record

    def on(self, dim: int, theta: float) -> tuple[constants.Scaling, constants.Enclosure | None]:
        """The change of the frequencies of a head, and the factor on cosine and sine or None."""
        if self.kind == "linear":
            return constants.linear_scaling(self.factor), None
        if self.kind == "llama3":
            return constants.llama3_scaling(
                self.factor, self.low_freq_factor, self.high_freq_factor, self.original_context
            ), None
        scaling = constants.yarn_scaling(
            dim, theta, self.factor, self.original_context, self.beta_fast, self.beta_slow, self.truncate
        )
        return scaling, constants.yarn_attention_factor(self.factor, self.attention_factor)


@functools.lru_cache(64)
def frequencies(dim: int, theta: float, scaling: str) -> tuple[Floats, float]:
    """Frequencies FP32 [dim/2] under a scaling, and the factor on cosine and sine as binary64."""
    change, factor = RopeScaling.from_text(scaling).on(dim, theta)
    return constants.inverse_frequencies(dim, theta, change), 1.0 if factor is None else float(factor(64).lo)


def tables(dim: int, theta: float, scaling: str | None, positions: int) -> tuple[Floats, Floats]:
    """Cosines and sines of positions 0..positions-1, each FP32 [positions, dim/2], as the contract has them."""
    change, factor = (None, None) if scaling is None else RopeScaling.from_text(scaling).on(dim, theta)
    return constants.rotary_tables(dim, theta, positions, change, factor)


_FACTOR = Field("factor", "float", low=1e-3, high=1e6)
_CONTEXT = Field("original_max_position_embeddings", "int", None, low=1, high=1 << 24, nullable=True)
_PARAMETERS: Mapping[str, tuple[Field, ...]] = {
    "default": (),
    "linear": (_FACTOR,),
    "llama3": (
        _FACTOR,
        Field("low_freq_factor", "float", low=1e-3, high=1e6),
        Field("high_freq_factor", "float", low=1e-3, high=1e6),
        _CONTEXT,
    ),
    "yarn": (
        _FACTOR,
        _CONTEXT,
        Field("beta_fast", "float", 32.0, low=1e-3, high=1e6, nullable=True),
        Field("beta_slow", "float", 1.0, low=1e-3, high=1e6, nullable=True),
        Field("attention_factor", "float", None, low=1e-3, high=1e3, nullable=True),
        Field("truncate", "bool", True, nullable=True),
        Field("mscale", "float", None, low=1e-3, high=1e3, nullable=True),
        Field("mscale_all_dim", "float", None, low=1e-3, high=1e3, nullable=True),
    ),
}
"""Parameters of each type of scaling."""

_MSCALES = ("mscale", "mscale_all_dim")
_DECIMAL = Context(prec=50)


def yarn_mscale(factor: float, mscale: float) -> Decimal:
    """0.1 * mscale * ln(factor) + 1, or 1 where factor is at most 1; to 50 digits, the same on every machine."""
    if factor <= 1:
        return Decimal(1)
    log = _DECIMAL.ln(Decimal(factor))
    return _DECIMAL.add(_DECIMAL.multiply(_DECIMAL.multiply(Decimal("0.1"), Decimal(mscale)), log), Decimal(1))


_COMMON = ("rope_type", "type", "rope_theta")
_OTHERS = ("partial_rotary_factor", "short_factor", "long_factor")
_KEYS = frozenset((*_COMMON, *_OTHERS, *(field.name for fields in _PARAMETERS.values() for field in fields)))
_THETA = Field("rope_theta", "float", low=1, high=1e15)


def read_rope(
    raw: Mapping[str, object], default_theta: float, context: object
) -> tuple[float, RopeScaling | None, list[str]]:
    """Base of the wavelengths and scaling from `rope_theta`, `rope_scaling` or `rope_parameters`, and the faults.

    transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`; what stands in two places
    must be the same in both. `context` stands for an original context that is not given, as in transformers.
    """
    faults: list[str] = []
    found: dict[str, object] = {}
    if raw.get("rope_theta") is not None:
        found["rope_theta"] = raw["rope_theta"]
    scalings: dict[str, RopeScaling | None] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = raw.get(name)
        if value is None:
            continue
        if not isinstance(value, dict):
            faults.append(f"{name}={show(value)} must be an object or null")
            continue
        scaling, more = _read_table(name, value, context)
        faults += more
        if not more:
            scalings[name] = scaling
        if value.get("rope_theta") is not None:
            found[f"{name}.rope_theta"] = value["rope_theta"]
    good = []
    for name, value in found.items():
        if _THETA.accepts(value):
            assert isinstance(value, int | float)
            good.append(float(value))
        else:
            faults.append(f"{name}={show(value)} must be {_THETA.allowed}")
    if len(set(good)) > 1:
        faults.append(" and ".join(f"{name}={show(value)}" for name, value in found.items()) + " must be equal")
    if len(set(scalings.values())) > 1:
        faults.append("rope_scaling and rope_parameters must say the same, remove one of them")
    theta = good[0] if good else default_theta
    record = next(iter(scalings.values()), None)
    if record is not None and record.kind == "yarn" and theta <= 1:
        faults.append(f'rope_theta={theta} must be above 1 with rope_type "yarn"')
    return theta, record, faults


def _read_table(name: str, table: Mapping[str, object], context: object) -> tuple[RopeScaling | None, list[str]]:
    """One table: its scaling (None: the plain embedding) and its faults."""
    kind = table.get("rope_type", table.get("type", "default"))
    if not isinstance(kind, str) or kind not in _PARAMETERS:
        wrong = f"{name}.rope_type={show(kind)} is not supported, must be one of {', '.join(_PARAMETERS)}"
        return None, [wrong, *_unknown(name, table)]
    faults = _unknown(name, table)
    fields = {field.name: field for field in _PARAMETERS[kind]}
    for key, value in table.items():
        plain = key == "partial_rotary_factor" and not isinstance(value, bool) and value == 1
        unused = key.startswith("mscale") and value is None
        if key in _KEYS and key not in fields and key not in _COMMON and not plain and not unused:
            faults.append(f'{name}.{key}={show(value)} is not supported with rope_type "{kind}", remove it')
    values: dict[str, object] = {}
    for field in fields.values():
        value = table.get(field.name)
        if value is None and field.default is not REQUIRED:
            values[field.name] = field.default
        elif field.name not in table:
            faults.append(f"{name}.{field.name} is missing, must be {field.allowed}")
        elif not field.accepts(value):
            faults.append(f"{name}.{field.name}={show(value)} must be {field.allowed}")
        else:
            values[field.name] = value if field.kind != "float" else _float(value)
    if not faults:
        for low, high, least in (("low_freq_factor", "high_freq_factor", "above"), ("beta_slow", "beta_fast", "least")):
            a, b = values.get(low), values.get(high)
            if isinstance(a, float) and isinstance(b, float) and (b < a or (b == a and least == "above")):
                words = "above" if least == "above" else "at least"
                faults.append(f"{name}.{high}={show(b)} must be {words} {name}.{low}={show(a)}")
    some = [key for key in _MSCALES if values.get(key) is not None]
    if len(some) == 1:
        faults.append(f"{name}.{some[0]}={show(values[some[0]])} must go with the other of {' and '.join(_MSCALES)}")
    if faults or kind == "default":
        return None, faults
    mscales = [values.pop(key, None) for key in _MSCALES]
    if some and values["attention_factor"] is None:
        over, under = (yarn_mscale(_float(values["factor"]), _float(m)) for m in mscales)
        values["attention_factor"] = float(_DECIMAL.divide(over, under))
    if "original_max_position_embeddings" in values:
        given = values.pop("original_max_position_embeddings")
        values["original_context"] = given if given is not None else context if isinstance(context, int) else 1
    return _make(kind, values), []


def _unknown(name: str, table: Mapping[str, object]) -> list[str]:
    """Faults for keys that no type knows."""
    keys = [key for key in table if key not in _KEYS]
    return [f"{name}.{show(key)[1:-1]} is no known field{did_you_mean(key, _KEYS)}" for key in keys]


def _float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _make(kind: str, values: Mapping[str, object]) -> RopeScaling:
    make: Callable[..., RopeScaling] = RopeScaling
    return make(kind=kind, **values)
