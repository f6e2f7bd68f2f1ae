"""config.json: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from systolith.models import family as family_module
from systolith.models.checkpoint import Checkpoint
from systolith.models.family import Family, build_graph, families, load_config, parse_config
from systolith.models.mistral import MISTRAL
from systolith.models.reference import interpret
from systolith.spec.errors import ModelError

from .conftest import SMALL_LLAMA, fuzz_file
from .test_reference import DEEPSEEK, DEEPSEEK_YARN, GEMMA, GPT_OSS, MIXTRAL, MXFP4, QWEN3_MOE

# As transformers 4 and 5 write them, the values of published models.
MISTRAL_7B_V4 = {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.0", "use_cache": True,
    "vocab_size": 32768,
}  # fmt: skip
LLAMA_2_V4 = {
    "_name_or_path": "x", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters"), [(MISTRAL_7B_V4, 7_248_023_552), (LLAMA_2_V4, 6_738_415_616)], ids=["mistral", "llama"]
)
def test_published_configs_are_read(config: dict[str, Any], parameters: int) -> None:
    assert build_graph(parse_config(config, "config.json")).parameters == parameters


@pytest.mark.torch
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "Mixtral", "Qwen3Moe", "GptOss", "Gemma3Text"])
@pytest.mark.parametrize("whole", [False, True])
def test_what_transformers_writes_is_read(name: str, whole: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    config = getattr(transformers, f"{name}Config")()
    read = parse_config(json.loads(config.to_json_string(use_diff=not whole)), "config.json")
    for field in ("hidden_size", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"):
        assert read.values[field] == getattr(config, field), field
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert read.values["head_dim"] == dim
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    assert read.number("rope_theta") == rope["rope_theta"]


def test_an_absent_sliding_window_is_that_of_transformers_and_null_is_none() -> None:
    without = {key: value for key, value in MISTRAL_7B_V4.items() if key != "sliding_window"}

    def window(config: dict[str, Any]) -> object:
        graph = build_graph(parse_config(config, "c"))
        return next(node for node in graph.layer if node.op == "attention").attr("window")

    assert window(without) == 4096
    assert window(MISTRAL_7B_V4) is None
    assert window({**without, "sliding_window": 300}) == 300


def test_several_eos_ids_and_null() -> None:
    assert build_graph(parse_config({**SMALL_LLAMA, "eos_token_id": [2, 5]}, "c")).eos_ids == (2, 5)
    graph = build_graph(parse_config({**SMALL_LLAMA, "eos_token_id": None, "bos_token_id": None}, "c"))
    assert (graph.eos_ids, graph.bos_id) == ((), None)


KNOWN = "must be one of deepseek_v3, gemma3, gemma3_text, gpt_oss, llama, mistral, mixtral, qwen2, qwen3, qwen3_moe"
TAIL = r"; correct the file$"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"hiden_size": 32},
            r"^c: hiden_size=32 is no known field of a llama model \(did you mean hidden_size\?\)",
        ),
        (
            {"zzz": {"a": "x" * 100}},
            r'^c: zzz=\{"a": "x{50}\.\.\. is no known field of a llama model '
            r"\(remove it if the model does not need it\)",
        ),
        ({"hidden_size": "32"}, r'^c: hidden_size="32" must be an integer 1\.\.1048576'),
        ({"hidden_size": True}, r"^c: hidden_size=true must be an integer 1\.\.1048576"),
        ({"hidden_size": -1}, r"^c: hidden_size=-1 must be an integer 1\.\.1048576"),
        ({"hidden_size": 10**40}, r"^c: hidden_size=10{40} must be an integer 1\.\.1048576"),
        ({"rms_norm_eps": [[[]]]}, r"^c: rms_norm_eps=\[\[\[\]\]\] must be a number 0\.\.1"),
        ({"hidden_act": "gelu"}, r'^c: hidden_act="gelu" must be "silu" or "swish"'),
        ({"tie_word_embeddings": 1}, r"^c: tie_word_embeddings=1 must be true or false"),
        ({"num_key_value_heads": 3}, r"^c: num_key_value_heads=3 must divide num_attention_heads=4"),
        ({"head_dim": 7}, r"^c: head_dim=7 must be even"),
        (
            {"head_dim": None, "hidden_size": 30},
            r"^c: hidden_size=30 must be a multiple of num_attention_heads=4, or head_dim must be given",
        ),
        ({"eos_token_id": [2, 64]}, r"^c: eos_token_id=64 must be below vocab_size=64"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            r"^c: rope_scaling\.low_freq_factor is missing, must be a number 0\.001\.\.1e\+06; "
            r"rope_scaling\.high_freq_factor is missing, must be a number 0\.001\.\.1e\+06",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factr": 8.0}},
            r'^c: rope_scaling\.rope_type="dynamic" is not supported, must be one of default, linear, llama3, yarn; '
            r"rope_scaling\.factr is no known field \(did you mean factor\?\)",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": True, "beta_fast": 3}},
            r'^c: rope_scaling\.beta_fast=3 is not supported with rope_type "linear", remove it; '
            r"rope_scaling\.factor=true must be a number 0\.001\.\.1e\+06",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 0.5, "truncate": None}},
            r"^c: rope_scaling\.beta_fast=0\.5 must be at least rope_scaling\.beta_slow=1\.0",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 1.0, "mscale_all_dim": None}},
            r"^c: rope_scaling\.mscale=1\.0 must go with the other of mscale and mscale_all_dim",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2}, "rope_theta": 1},
            r'^c: rope_theta=1\.0 must be above 1 with rope_type "yarn"',
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
            r"^c: rope_scaling\.high_freq_factor=4\.0 must be above rope_scaling\.low_freq_factor=4\.0",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}},
            r"^c: rope_scaling and rope_parameters must say the same, remove one of them",
        ),
        ({"rope_scaling": {"typ": "default"}}, r"^c: rope_scaling\.typ is no known field \(did you mean type\?\)"),
        (
            {"rope_parameters": {"rope_type": "default", "factor": 2}},
            r'^c: rope_parameters\.factor=2 is not supported with rope_type "default", remove it',
        ),
        (
            {"rope_parameters": {"rope_theta": 5.0}},
            r"^c: rope_theta=10000\.0 and rope_parameters\.rope_theta=5\.0 must be equal",
        ),
        ({"rope_theta": 0.5}, r"^c: rope_theta=0\.5 must be a number 1\.\.1e\+15"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            r'^c: quantization_config=\{"quant_method": "gptq"\} is not supported for a llama model, must be null',
        ),
        (
            {"architectures": ["LlamaModel"]},
            r'^c: architectures=\["LlamaModel"\] is not supported, must be \["LlamaForCausalLM"\]',
        ),
        (
            {"sliding_window": 5, "vocab_siz": 3, "mlp_bias": 0},
            r"^c: vocab_siz=3 is no known field of a llama model \(did you mean vocab_size\?\); "
            r"mlp_bias=0 must be true or false; sliding_window=5 must be null",
        ),
    ],
)
def test_a_fault_is_one_whole_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence + TAIL):
        parse_config({**SMALL_LLAMA, **changes}, "c")


def test_missing_fields_are_named_with_what_they_must_be() -> None:
    with pytest.raises(
        ModelError,
        match=r"^c: hidden_size is missing, must be an integer 1\.\.1048576; intermediate_size is missing, must be an "
        r"integer 1\.\.4194304; num_hidden_layers is missing, must be an integer 1\.\.4096; num_attention_heads is "
        r"missing, must be an integer 1\.\.65536; vocab_size is missing, must be an integer 1\.\.16777216; "
        r"correct the file$",
    ):
        parse_config({"model_type": "llama"}, "c")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({}, rf"^c: model_type is missing, {KNOWN}; choose a model of these families$"),
        (
            {"model_type": "lama"},
            rf'^c: model_type="lama" is not supported, {KNOWN} \(did you mean llama\?\); '
            r"choose a model of these families$",
        ),
        (
            {"model_type": ["llama"]},
            rf'^c: model_type=\["llama"\] is not supported, {KNOWN}; '
            r"choose a model of these families$",
        ),
    ],
)
def test_unknown_families_are_refused(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        parse_config(raw, "c")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", r"Expecting property name enclosed in double quotes at line 1, column 2"),
        (b"", r"Expecting value at line 1, column 1"),
        (b"\xff", r"byte 0 is not UTF-8"),
        (b'{"a": NaN}', r"NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', r'the key "a" stands twice'),
        (b"[" * 100000, r"it is nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", r"Exceeds the limit .*"),
    ],
    ids=["cut", "empty", "latin1", "nan", "twice", "deep", "huge"],
)
def test_what_is_no_json_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(
        ModelError, match=rf"^.*config\.json: is not valid JSON \({reason}\); fetch the file again or mend it$"
    ):
        load_config(tmp_path)


def test_a_list_is_no_config_and_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^.*config\.json: not found; a model directory needs config\.json$"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(
        ModelError, match=r"^.*config\.json: holds \[1\], must hold a JSON object; fetch the file again or mend it$"
    ):
        load_config(tmp_path)


_YARN = {"type": "yarn", "factor": 4.0, "beta_fast": 32, "truncate": True, "original_max_position_embeddings": 64}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FUZZED: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": None, "pad_token_id": None, "attention_bias": False, "eos_token_id": [2, 3]},
    "llama3": {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 64}},
    "qwen2": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_scaling": _YARN,
        "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1,
    },
    "qwen3": {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "rope_theta": None,
        "rope_parameters": {**_YARN, "rope_theta": 10000.0, "attention_factor": 1.1},
        "layer_types": ["full_attention", "full_attention"],
    },
    "mixtral": MIXTRAL,
    "qwen3_moe": {**QWEN3_MOE, "mlp_only_layers": [1], "decoder_sparse_step": 1, "norm_topk_prob": True},
    "gpt_oss": {**GPT_OSS, **MXFP4, "swiglu_limit": 7.0, "experts_per_token": 3, "rope_scaling": _YARN},
    "gemma3_text": {**GEMMA, "_sliding_window_pattern": 6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "deepseek_v3": {**DEEPSEEK, "rope_scaling": DEEPSEEK_YARN, "q_lora_rank": None, "norm_topk_prob": True},
}  # fmt: skip


@pytest.mark.parametrize("family", FUZZED)
def test_500_random_byte_changes_end_in_a_sentence_or_normally(family: str, make_model: Callable[..., Path]) -> None:
    path = make_model(**FUZZED[family])
    file = path / "config.json"
    digits = [at for at, byte in enumerate(file.read_bytes()) if chr(byte).isdigit()]

    def attempt() -> None:
        checkpoint = Checkpoint.open(path)
        interpret(checkpoint.graph, checkpoint, [1, 3])

    report = fuzz_file(file, attempt, seed=3, places=digits)
    assert report.normal > 10
    assert len(report.refusals) > 100


def test_windows_of_qwen_follow_the_layers() -> None:
    def read(**changes: Any) -> object:
        raw = {**SMALL_LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **changes}
        graph = build_graph(parse_config(raw, "c"))
        return next(node for node in graph.layer if node.op == "attention").attrs["window"]

    on = {"use_sliding_window": True, "sliding_window": 9}
    assert read() is None
    assert read(sliding_window=9, max_window_layers=0) is None
    assert read(**on) is None  # from layer 28 on
    assert read(**on, max_window_layers=1) == (None, 9)
    assert read(**on, max_window_layers=0) == 9
    assert read(**on, layer_types=["sliding_attention", "full_attention"]) == (9, None)
    with pytest.raises(
        ModelError,
        match=r"^c: layer_types names sliding_attention: use_sliding_window must be true and sliding_window a number; "
        r"correct the file$",
    ):
        read(layer_types=["sliding_attention", "full_attention"])
    with pytest.raises(
        ModelError,
        match=r'^c: layer_types=\["full_attention"\] must be a list with full_attention or sliding_attention for each '
        r"of 2 layers, or null; correct the file$",
    ):
        read(layer_types=["full_attention"])


class _Point:
    """An entry point as importlib.metadata has it."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value, self._object = name, f"package:{name}", value

    def load(self) -> object:
        if isinstance(self._object, Exception):
            raise self._object
        return self._object


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            ImportError("no module named x"),
            r"^entry point other=package:other of systolith\.families cannot be loaded \(ImportError: no module named "
            r"x\); repair or uninstall its package$",
        ),
        (
            3,
            r"^entry point other=package:other of systolith\.families must be a Family, is of type int; repair or "
            r"uninstall its package$",
        ),
        (
            Family("llama", "X", (), MISTRAL.derive, MISTRAL.build),
            r"^entry point other=package:other of systolith\.families declares the family llama, which exists already; "
            r"give it another model_type$",
        ),
    ],
    ids=["broken", "foreign", "taken"],
)
def test_a_family_from_outside_that_does_not_fit_is_named(
    value: object, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [_Point("other", value)])
    families.cache_clear()
    try:
        with pytest.raises(ModelError, match=sentence):
            family_module.families()
    finally:
        families.cache_clear()


def test_a_family_from_outside_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Family("mine", "MineForCausalLM", MISTRAL.fields, MISTRAL.derive, MISTRAL.build)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [_Point("mine", mine)])
    families.cache_clear()
    try:
        config = parse_config({**SMALL_LLAMA, "model_type": "mine", "architectures": ["MineForCausalLM"]}, "c")
        monkeypatch.undo()
        assert build_graph(config).architecture == "MineForCausalLM"
    finally:
        families.cache_clear()
