"""Model families: for each `model_type` of config.json the fields it reads and the graph it means.

A family is one declaration, `Family(...)`, listed here or by a package of somebody else through the entry point group
"systolith.families" (the entry point's object is the Family).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from systolith.models._text import did_you_mean, read_json_object, show
from systolith.models.config import Field, ModelConfig, check_fields
from systolith.models.graph import ModelGraph, require
from systolith.models.layout import Stored
from systolith.models.plugins import plugins
from systolith.spec.errors import ModelError

__all__ = ["ENTRY_POINTS", "Family", "build_graph", "families", "load_config", "packaged_configs", "parse_config"]

ENTRY_POINTS = "systolith.families"
"""Group of the entry points that add families."""


@dataclass(frozen=True)
class Family:
    """A kind of model.

    model_type, architecture : as config.json names them ("llama", "LlamaForCausalLM").
    fields : the fields of config.json that are read.
    derive : gets (file, values) once the fields are checked; adds derived values to `values`; returns faults.
    build : makes the graph from the checked config.
    layouts : gets (config, name of a tensor of the graph, with `{layer}` and `{expert}`); gives the ways in which it
    may lie in a checkpoint, the usual one first.
    unused : gets (config, name of a stored tensor); says whether it may be there though the graph does not read it.
    """

    model_type: str
    architecture: str
    fields: tuple[Field, ...]
    derive: Callable[[Mapping[str, object], dict[str, object]], list[str]]
    build: Callable[[ModelConfig], ModelGraph]
    layouts: Callable[[ModelConfig, str], tuple[Stored, ...]] = lambda config, name: (Stored(name),)
    unused: Callable[[ModelConfig, str], bool] = lambda config, name: False


@functools.cache
def families() -> Mapping[str, Family]:
    """All families by model_type: those of this package and those that entry points add.

    Raises ModelError if an entry point cannot be loaded, holds no Family or takes a name that is in use.
    """
    from systolith.models.deepseek import DEEPSEEK_V3
    from systolith.models.gemma import GEMMA3, GEMMA3_TEXT
    from systolith.models.gpt_oss import GPT_OSS
    from systolith.models.llama import LLAMA
    from systolith.models.mistral import MISTRAL
    from systolith.models.mixtral import MIXTRAL
    from systolith.models.qwen import QWEN2, QWEN3
    from systolith.models.qwen_moe import QWEN3_MOE

    known = (DEEPSEEK_V3, GEMMA3, GEMMA3_TEXT, GPT_OSS, LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE)
    found = {family.model_type: family for family in known}
    for where, family in plugins(ENTRY_POINTS, Family):
        if found.setdefault(family.model_type, family) is not family:
            raise ModelError(
                f"{where} declares the family {family.model_type}, which exists already; give it another model_type"
            )
    return found


def parse_config(raw: Mapping[str, object], source: str) -> ModelConfig:
    """Check the object of a config.json. `source` names the file in messages.

    Raises ModelError with every fault in one sentence: unknown family or architecture, unknown or misspelt field, wrong
    type, value out of range, value that is not supported.
    """
    known = families()
    kind = raw.get("model_type")
    family = known.get(kind) if isinstance(kind, str) else None
    listed = ", ".join(sorted(known))
    if family is None:
        given = f"model_type={show(kind)} is not supported" if "model_type" in raw else "model_type is missing"
        hint = did_you_mean(kind, known) if isinstance(kind, str) else ""
        raise ModelError(f"{source}: {given}, must be one of {listed}{hint}; choose a model of these families")
    faults = []
    architectures = raw.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        faults.append(f'architectures={show(architectures)} is not supported, must be ["{family.architecture}"]')
    values, more = check_fields(raw, family.fields, family.model_type)
    faults += more
    faults += family.derive(raw, values)
    if faults:
        raise ModelError(f"{source}: " + "; ".join(faults) + "; correct the file")
    return ModelConfig(family.model_type, family.architecture, values, source)


def load_config(path: str | Path) -> ModelConfig:
    """Read and check config.json of a model directory, or a config file itself. Raises ModelError."""
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    return parse_config(read_json_object(path, "config.json"), str(path))


def packaged_configs() -> Mapping[str, Path]:
    """Configs of published models that the package holds, by name ("llama-3.1-8b"): facts only, no weights."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.json"))}


def build_graph(config: ModelConfig) -> ModelGraph:
    """The graph of a checked config, held against the operation records."""
    return require(families()[config.family].build(config))
