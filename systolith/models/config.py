"""config.json: fields with types and ranges, unknown fields refused, all faults told in one sentence.

A family declares the fields it reads (`Field`). The fields that transformers writes for every model and that change
nothing at inference are in HARMLESS; those that change what is computed, in ways not built here, are in GUARDED with
the only values allowed. Everything else is refused: a misspelt setting never runs as the default.

Source: the fields of PreTrainedConfig, LlamaConfig and MistralConfig of transformers 4.30 to 5.23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from systolith.models._text import did_you_mean, show

__all__ = ["GUARDED", "HARMLESS", "REQUIRED", "Field", "ModelConfig", "check_fields"]

REQUIRED = object()
"""Default of a field that has none."""

_HARMLESS = """
_name_or_path architectures model_type dtype torch_dtype transformers_version use_cache initializer_range
attention_dropout hidden_dropout attn_dropout pretraining_tp pad_token_id sep_token_id cls_token_id unk_token_id
decoder_start_token_id return_dict output_hidden_states output_attentions output_scores torchscript use_bfloat16
tf_legacy_loss tie_encoder_decoder is_decoder cross_attention_hidden_size chunk_size_feed_forward max_length
min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
exponential_decay_length_penalty suppress_tokens begin_suppress_tokens finetuning_task id2label label2id num_labels
tokenizer_class prefix task_specific_params problem_type attn_implementation _attn_implementation
_attn_implementation_autoset _attn_implementation_internal _experts_implementation _commit_hash
_flash_attn_2_enabled unsloth_version unsloth_fixed output_router_logits router_aux_loss_coef router_jitter_noise
cache_implementation
"""
HARMLESS = frozenset(_HARMLESS.split())
"""Fields that change nothing at inference; their values are not looked at."""

GUARDED: Mapping[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "compression_config": (None,),
    "auto_map": (None, {}),
    "partial_rotary_factor": (None, 1, 1.0),
    "per_layer_config": (None, {}),
    "use_sliding_window": (False, None),
    "layer_types": (None,),
}
"""Fields that are known, and the values with which nothing is computed that is not built here."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field that a family reads.

    kind : "int", "float", "bool", "str", "ids" (a token id, a list of them, or null), "any" (looked at by the family).
    default : taken where the field is absent; REQUIRED if there is none.    nullable : null is allowed (and kept).
    low, high : inclusive range of a number.    choices : the only values allowed.
    """

    name: str
    kind: str
    default: object = REQUIRED
    low: float = 0
    high: float = math.inf
    nullable: bool = False
    choices: tuple[object, ...] = ()

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.choices:
            words = " or ".join(show(choice) for choice in self.choices)
        else:
            words = {
                "int": f"an integer {self.low:.0f}..{self.high:.0f}",
                "float": f"a number {self.low:g}..{self.high:g}",
                "bool": "true or false",
                "str": "a string",
                "ids": f"a token id 0..{self.high:.0f} or a list of them",
                "any": "present",
            }[self.kind]
        return words + (" or null" if self.nullable and words != "null" else "")

    def accepts(self, value: object) -> bool:
        """Whether a value of the file is allowed."""
        if value is None:
            return self.nullable
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if self.kind in ("int", "float"):
            number = _number(value)
            if number is None or (self.kind == "int" and not isinstance(number, int)):
                return False
            return self.low <= number <= self.high
        if self.kind == "ids":
            ids = value if isinstance(value, list) else [value]
            return len(ids) <= 1024 and all(_integer(i) and 0 <= i <= self.high for i in ids)
        return self.kind == "any" or isinstance(value, {"bool": bool, "str": str}[self.kind])


@dataclass(frozen=True)
class ModelConfig:
    """A checked config.json: the family's name, the architecture, the values of all fields the family reads (defaults
    filled in, derived ones added), and the file it came from."""

    family: str
    architecture: str
    values: Mapping[str, object]
    source: str

    def integer(self, name: str) -> int:
        """An integer field."""
        value = self.values[name]
        assert isinstance(value, int), (name, value)
        return value

    def optional(self, name: str) -> int | None:
        """An integer field that may be null."""
        return None if self.values[name] is None else self.integer(name)

    def number(self, name: str) -> float:
        """A number, as binary64."""
        value = self.values[name]
        assert isinstance(value, int | float), (name, value)
        return float(value)

    def flag(self, name: str) -> bool:
        """A field that is true or false."""
        return self.values[name] is True

    def ids(self, name: str) -> tuple[int, ...]:
        """A field of token ids: one, several or null."""
        value = self.values[name]
        if value is None:
            return ()
        return tuple(value) if isinstance(value, list | tuple) else (self.integer(name),)


def check_fields(
    raw: Mapping[str, object], fields: tuple[Field, ...], family: str
) -> tuple[dict[str, object], list[str]]:
    """Hold the fields of a file against a family's; give (values of the family's fields, faults).

    A field with a fault takes its default, or is left out where it has none, so that the rest can be checked too.
    """
    by_name = {field.name: field for field in fields}
    known = {*by_name, *HARMLESS, *GUARDED}
    faults = []
    for name, value in raw.items():
        if name not in known:
            hint = did_you_mean(name, known) or " (remove it if the model does not need it)"
            faults.append(f"{show(name)[1:-1]}={show(value)} is no known field of a {family} model{hint}")
        elif name in GUARDED and name not in by_name and not any(_same(value, good) for good in GUARDED[name]):
            allowed = " or ".join(show(good) for good in GUARDED[name])
            faults.append(f"{name}={show(value)} is not supported for a {family} model, must be {allowed}")
    values: dict[str, object] = {}
    for field in fields:
        if field.name in raw and field.accepts(raw[field.name]):
            values[field.name] = raw[field.name]
            continue
        if field.name in raw:
            faults.append(f"{field.name}={show(raw[field.name])} must be {field.allowed}")
        elif field.default is REQUIRED:
            faults.append(f"{field.name} is missing, must be {field.allowed}")
        if field.default is not REQUIRED:
            values[field.name] = field.default
    return values, faults


def _number(value: object) -> int | float | None:
    """The value if it is a number (true is none), else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _same(value: object, good: object) -> bool:
    """Equality in which true is not 1."""
    return value == good and isinstance(value, bool) == isinstance(good, bool)
