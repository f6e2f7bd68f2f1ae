"""A model directory in Hugging Face layout: config.json, tensors in one file or in shards, checked before any is read.

What counts as a checkpoint that fits: every tensor of the graph is there once, in one of the layouts of its family
(`layout`), mostly under its own name, in a type that FP32 holds exactly, with the graph's shape. A tensor the graph
does not know is refused, as it would change what another program computes (a bias the config denies, a layer too many),
except for those in IGNORED, which hold nothing of their own, those that the family says are not read, and a
`lm_head.weight` beside a tied table, which must equal the table. Numbers that are not finite are legal: NUMERICS says
what they mean.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from systolith.models._text import did_you_mean, read_json_object, show
from systolith.models.config import ModelConfig
from systolith.models.family import build_graph, families, load_config
from systolith.models.graph import ModelGraph, WeightRef
from systolith.models.layout import Place, Stored, find_places
from systolith.models.safetensors_file import SafetensorsFile, StoredTensor
from systolith.spec.errors import ModelError

__all__ = ["IGNORED", "Checkpoint"]

IGNORED = re.compile(r"(model\.layers\.\d+\.self_attn\.|model\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
"""Tensors of older checkpoints that follow from the config."""

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CHUNK_BYTES = 64 << 20
_MAX_MISSING = 10000


@dataclass(frozen=True)
class Checkpoint:
    """A model directory that fits its graph.

    path : the directory.      config, graph : what config.json says.
    files : by stored tensor, the file it lies in.      places : by tensor of the graph, where it lies.
    """

    path: Path
    config: ModelConfig
    graph: ModelGraph
    files: Mapping[str, SafetensorsFile]
    places: Mapping[str, Place] = field(repr=False)

    @staticmethod
    def open(path: str | Path) -> Checkpoint:
        """Open a directory; reads headers only (and a redundant `lm_head.weight`, which is compared with its table).

        `graph.eos_ids` comes from generation_config.json where that names any, as transformers' generate has it.
        Raises ModelError in one sentence.
        """
        path = Path(path)
        try:
            kind = "" if path.is_dir() else "is no directory" if path.exists() else "not found"
        except OSError as error:
            kind = f"cannot be read ({error.strerror})"
        if kind:
            raise ModelError(f"{path}: {kind}; give a directory with config.json, model.safetensors and tokenizer.json")
        config = load_config(path)
        graph = replace(build_graph(config), name=path.resolve().name or config.family)
        graph = replace(graph, eos_ids=_generation_eos(path, graph))
        files = _find_files(path)
        places = _check_tensors(path, config, graph, files)
        return Checkpoint(path, config, graph, files, places)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor by its name in the graph, FP32; read from the file each time.

        Exact, but for FP8 blocks, RNE(code * scale), and gains stored as their difference to 1, RNE(1 + difference).
        Raises ModelError.
        """
        return self._place(name).read(self.files)

    def weight(self, ref: WeightRef, layer: int | None, expert: int | None = None) -> NDArray[np.float32]:
        """The tensor of a reference in one layer, and of one expert where there are several, FP32 [N, K] or [N]."""
        return self.tensor(ref.at(layer, expert))

    def blocks(
        self, ref: WeightRef, layer: int | None, expert: int | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """MX blocks of a matrix as the checkpoint has them: E2M1 codes, one a byte [N, K], and E8M0 scales [N, K / 32].

        None where it does not store the matrix in MXFP4. Raises ModelError.
        """
        place = self._place(ref.at(layer, expert))
        return place.blocks(self.files) if place.how.coding == "mxfp4" else None

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop-1 of a tensor as FP32; of one that is stored as it is nothing else is read.

        Raises ModelError.
        """
        place = self._place(name)
        count = place.ref.shape[0]
        if not 0 <= start <= stop <= count:
            raise ModelError(f"{self.path}: rows {start}..{stop} of tensor {name} must lie within 0..{count}")
        if place.how == Stored(place.how.name) and not place.how.stacked(place.ref):
            return self.files[place.names[0]].rows(place.names[0], start, stop)
        return place.read(self.files)[start:stop]

    def stored(self, name: str) -> StoredTensor:
        """Type, shape and place of a tensor as it is stored; of one in blocks, of its codes."""
        stored = self._place(name).names[0]
        return self.files[stored].tensors[stored]

    def _place(self, name: str) -> Place:
        if name not in self.places:
            raise ModelError(f"{self.path}: has no tensor {show(name)}{did_you_mean(name, self.places)}")
        return self.places[name]

    @functools.cached_property
    def _stored_names(self) -> tuple[str, ...]:
        """Names of the stored tensors that the graph reads, in order."""
        return tuple(sorted({name for place in self.places.values() for name in place.names}))

    @functools.cached_property
    def bytes(self) -> int:
        """Bytes of the graph's tensors as they are stored."""
        return sum(self.files[name].tensors[name].size_bytes for name in self._stored_names)

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the model, in hexadecimal: the values of the config that the family reads, then type, shape and
        bytes of the graph's tensors in the order of their names. Shards and harmless fields do not change it."""
        digest = hashlib.sha256()
        values = {"model_type": self.config.family, **self.config.values, "eos": list(self.graph.eos_ids)}
        digest.update(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())
        for name in self._stored_names:
            stored = self.files[name].tensors[name]
            digest.update(f"\n{name} {stored.dtype} {stored.shape}\n".encode())
            for start, stop in _row_chunks(stored):
                digest.update(self.files[name].raw(name, start, stop).tobytes())
        return digest.hexdigest()


def _row_chunks(stored: StoredTensor) -> list[tuple[int, int]]:
    """Ranges of rows of about 64 MiB."""
    rows = stored.shape[0]
    step = max(1, _CHUNK_BYTES * rows // max(stored.size_bytes, 1))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _generation_eos(path: Path, graph: ModelGraph) -> tuple[int, ...]:
    """Stop tokens: those of generation_config.json if it names any, else the graph's."""
    file = path / "generation_config.json"
    if not file.exists():
        return graph.eos_ids
    value = read_json_object(file, "generation_config.json").get("eos_token_id")
    if value is None:
        return graph.eos_ids
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < graph.vocab for i in ids):
        raise ModelError(
            f"{file}: eos_token_id={show(value)} must be a token id 0..{graph.vocab - 1} or a list of them; "
            "correct the file"
        )
    return tuple(ids)


def _find_files(path: Path) -> dict[str, SafetensorsFile]:
    """All tensors of a directory by name, with the file of each. One file wins over an index, as in transformers."""
    single, index = path / _SINGLE, path / _INDEX
    if single.exists() or not index.exists():
        if not single.exists():
            others = sorted(p.name for p in path.glob("*.bin"))[:1]
            hint = f"convert {others[0]} to safetensors" if others else "fetch the weights of the model"
            raise ModelError(f"{path}: has neither {_SINGLE} nor {_INDEX}; {hint}")
        file = SafetensorsFile.open(single)
        return dict.fromkeys(file.tensors, file)
    table = read_json_object(index, _INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{index}: weight_map={show(table)} must map names of tensors to files; fetch the file again")
    opened: dict[str, SafetensorsFile] = {}
    found: dict[str, SafetensorsFile] = {}
    for name, shard in table.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w][\w.-]*\.safetensors", shard, re.ASCII):
            raise ModelError(
                f"{index}: tensor {show(name)} lies in {show(shard)}, must be a .safetensors file of this directory; "
                "fetch the file again"
            )
        if shard not in opened:
            opened[shard] = SafetensorsFile.open(path / shard)
        if name not in opened[shard].tensors:
            raise ModelError(f"{index}: tensor {show(name)} is not in {shard}; fetch the index and its shards again")
        found[name] = opened[shard]
    for shard, file in opened.items():
        for name in file.tensors:
            if name not in found:
                raise ModelError(f"{index}: tensor {show(name)} of {shard} is not listed; fetch the index again")
    return found


def _check_tensors(
    path: Path, config: ModelConfig, graph: ModelGraph, files: Mapping[str, SafetensorsFile]
) -> dict[str, Place]:
    """Where each tensor of the graph lies; everything that does not fit is told in one sentence."""
    family = families()[config.family]
    places: dict[str, Place] = {}
    missing: dict[str, None] = {}
    misfits: dict[str, None] = {}
    for ref, layer in graph.references():
        ways = family.layouts(config, ref.name)
        for expert, (name, place, faults) in enumerate(find_places(ref, layer, ways, files)):
            if place is None:
                usual = ways[0].names(ref, layer, expert)
                missing |= dict.fromkeys(stored for stored in usual if stored not in files)
                if len(missing) > _MAX_MISSING:  # a config may ask for millions
                    raise _misfit(path, [f"lacks {_some(list(missing), ' at least')}, which the config asks for"])
            else:
                places[name] = place
                misfits |= dict.fromkeys(faults)
    faults = []
    if missing:
        faults.append(f"lacks {_some(list(missing))}, which the config asks for")
    used = {name for place in places.values() for name in place.names}
    extra = [n for n in files if n not in used and not IGNORED.fullmatch(n) and not (graph.tied and n == _HEAD)]
    extra = [name for name in extra if not family.unused(config, name)]
    if extra:
        faults.append(f"holds {_some(extra)}, for which the config has no use")
    faults += misfits
    if faults:
        raise _misfit(path, faults)
    if graph.tied and _HEAD in files:
        _check_tied(path, graph, places, files)
    return places


def _misfit(path: Path, faults: list[str]) -> ModelError:
    shown = faults if len(faults) <= 8 else [*faults[:8], f"and {len(faults) - 8} more faults"]
    return ModelError(f"{path}: " + "; ".join(shown) + "; use the config.json that belongs to these tensors")


_HEAD = "lm_head.weight"


def _check_tied(
    path: Path, graph: ModelGraph, places: Mapping[str, Place], files: Mapping[str, SafetensorsFile]
) -> None:
    """A head beside a tied table must be the table, or it is not clear which one is meant."""
    table = next(ref.name for node in graph.head for ref in node.weights.values() if ref.tensor == "head")
    table = places[table].names[0]
    a, b = files[table].tensors[table], files[_HEAD].tensors[_HEAD]
    same = (a.dtype, a.shape) == (b.dtype, b.shape) and all(
        np.array_equal(files[table].raw(table, start, stop), files[_HEAD].raw(_HEAD, start, stop))
        for start, stop in _row_chunks(a)
    )
    if not same:
        raise ModelError(
            f"{path}: tie_word_embeddings is true and {_HEAD} differs from {table}; set it to false or remove {_HEAD}"
        )


def _some(names: list[str], least: str = "") -> str:
    """The first names of a list and how many more there are (`least`: " at least")."""
    shown = ", ".join(show(name)[1:-1] for name in names[:3])
    kind = "tensor" if len(names) == 1 else "tensors"
    return f"the {kind} {shown}" + (f" and{least} {len(names) - 3} more" if len(names) > 3 else "")
