"""The catalogue: every field has a source and a date, and a weak entry says so; names lead to what they name."""

from __future__ import annotations

import pytest

from systolith.peers.architectures import known_models
from systolith.peers.catalogue import devices, find_device
from systolith.peers.names import find
from systolith.spec.errors import ConfigError

GIB = 2**30
STATED = ("b200.bandwidth",)  # what is uncertain in its text is the figure of another variant


def test_every_field_has_a_source_a_date_and_a_confidence() -> None:
    assert len(devices()) == 32
    for device in devices().values():
        assert {"name", "vendor", "generation", "year"} <= set(device.facts)
        for name, fact in device.facts.items():
            where = f"{device.key}.{name}"
            assert fact.source, where
            assert fact.date[:2] == "20", where
            assert fact.confidence in ("stated", "secondary", "uncertain"), where
            assert (
                name == "confidence"
                or "uncertain" not in fact.text
                or fact.confidence == "uncertain"
                or where in STATED
            )
            assert (fact.low is None) == (fact.high is None), where
            assert fact.low is None or 0 < fact.low <= (fact.high or 0), where


def test_rates_do_not_fall_with_the_width_of_the_format() -> None:
    for device in devices().values():
        rates = [rate for kind in ("bf16", "fp8", "fp4") if (rate := device.rate(kind)) is not None]
        assert rates == sorted(rates), device.key


def test_figures_are_those_of_the_data_sheet() -> None:
    h100 = find_device("h100")
    assert (h100.memory_bytes, h100.bytes_per_s, h100.link_bytes_per_s) == (80 * GIB, 3.35e12, 450e9)
    assert (h100.rate("bf16"), h100.rate("fp8"), h100.rate("fp4")) == (989e12, 1979e12, None)
    groq = find_device("groq-lpu-v1")
    assert groq.on_chip
    assert (groq.memory_bytes, groq.bytes_per_s) == (230e6, 80e12)
    assert find_device("tpu-v5e").link_bytes_per_s == 190e9  # 180 to 200, one way as it stands


def test_a_weak_entry_carries_no_conclusion() -> None:
    weak = {key for key, device in devices().items() if "the whole row" in device.uncertain(())}
    assert weak == {"groq-lp30", "sn40l", "sohu", "maia-200"}
    assert find_device("corsair").uncertain(("bandwidth", "fp8")) == ["bandwidth"]
    with pytest.raises(ConfigError, match=r"^device h1000: is not in the catalogue; known are a100, "):
        find_device("h1000")


@pytest.mark.parametrize(
    ("kind", "text", "name"),
    [
        ("device", "H100", "h100"), ("device", "NVIDIA H100 80GB HBM3", "h100"), ("device", "a100-sxm4-80gb", "a100"),
        ("device", "AMD Instinct MI300X", "mi300x"), ("device", "GB200 (per GPU)", "gb200"),
        ("device", "TPU v5e", "tpu-v5e"),
        ("device", "H100 NVL", None), ("device", "H100 PCIe", None), ("device", "A100-40GB", None),
        ("device", "", None),
        ("model", "meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"), ("model", "Llama 3.3 70B", "llama-3.1-70b"),
        ("model", "amd/Llama-3.1-70B-Instruct-FP8-KV", "llama-3.1-70b"), ("model", "LLaMA-7B", "llama-2-7b"),
        ("model", "DeepSeek-R1-0528", "deepseek-r1"), ("model", "Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("model", "Llama-3.1-80B", None), ("model", "Qwen3-235B-A22B", "qwen3-235b-a22b"), ("model", "Qwen3-5B", None),
        ("engine", "TRT-LLM v1.0 trtllm-bench", "tensorrt-llm"), ("engine", "vLLM 0.10.0 ROCm 6.4.1", "vllm"),
        ("engine", "gpt-fast (A100-80GB power limited 330W)", "gpt-fast"), ("engine", "something", None),
        ("format", "FP16", "bf16"), ("format", "int4w-g32", "int4w"), ("format", "NVFP4", "fp4"),
        ("format", "fp6", None),
    ],
)  # fmt: skip
def test_names_lead_to_what_they_name_and_to_nothing_else(kind: str, text: str, name: str | None) -> None:
    assert find(kind, text) == name


def test_every_alias_names_something() -> None:
    for name in known_models():
        assert find("model", name) == name
    for key, device in devices().items():
        assert find("device", key) == key
        assert find("device", device.name) == key
