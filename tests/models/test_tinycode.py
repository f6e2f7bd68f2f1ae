"""The shipped model `tinycode`: its directory is complete, small and consistent. No torch needed."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import struct
import sysconfig
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import systolith

ROOT = Path(systolith.__file__).parent / "models" / "tinycode"
LIBRARY = Path(sysconfig.get_path("stdlib"))
HELD_OUT = json.loads((ROOT / "heldout.json").read_text())
TOKENIZER = Tokenizer.from_file(str(ROOT / "tokenizer.json"))


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def is_test(path: str) -> bool:
    return any(part in ("test", "tests", "idle_test") for part in path.split("/"))


def test_directory_is_at_most_8_mb() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 8_000_000


def test_weights_are_those_of_the_config_in_bf16() -> None:
    config = json.loads((ROOT / "config.json").read_text())
    D, FF, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    expected = {"model.embed_tokens.weight": [config["vocab_size"], D], "model.norm.weight": [D]}
    for i in range(config["num_hidden_layers"]):
        expected |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": [D],
                "self_attn.q_proj": [queries, D],
                "self_attn.k_proj": [keys, D],
                "self_attn.v_proj": [keys, D],
                "self_attn.o_proj": [D, queries],
                "post_attention_layernorm": [D],
                "mlp.gate_proj": [FF, D],
                "mlp.up_proj": [FF, D],
                "mlp.down_proj": [D, FF],
            }.items()
        }
    with (ROOT / "model.safetensors").open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    assert {name: tensor["shape"] for name, tensor in header.items()} == expected
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    assert TOKENIZER.get_vocab_size() == config["vocab_size"]
    assert TOKENIZER.token_to_id("<|endoftext|>") == config["bos_token_id"] == config["eos_token_id"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "def f(x):\n    return x\n",
        "\tif a:\r\n\t\tb = 1  # two\ttabs\r\n",
        "Où l'été naïf s'achève, cœur déçu : « ça coûte 3 € ».",
        "👩‍🚀 naïve café — 東京 ☃ \u0000 \ufeff \U0010ffff e\u0301",
        "   \n\n   \n x   y  \n",
        "1234567890 0x1F 1_000 a1b2 __init__ \u0663\u0664",
    ],
)
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(encode(text)) == text
    assert TOKENIZER.encode(text).ids == [0, *encode(text)]


def test_every_character_round_trips() -> None:
    points = [*range(0x3000), *range(0x1F300, 0x1FB00), *range(0x3000, 0x110000, 997)]
    text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    assert TOKENIZER.decode(encode(text)) == text


@pytest.mark.parametrize("prompt", ["def f(x):\n", "class A:\n    ", "if x:\n\t", "x = 1\n\n\n"])
def test_a_prompt_may_end_in_a_newline_or_an_indentation(prompt: str) -> None:
    assert encode(prompt + "return x\n") == encode(prompt) + encode("return x\n")


def test_held_out_text_is_enough_with_and_without_tests() -> None:
    assert len({entry["path"] for entry in HELD_OUT}) == len({entry["sha256"] for entry in HELD_OUT}) == len(HELD_OUT)
    assert sum(entry["tokens"] for entry in HELD_OUT) > 50_000
    library = [entry for entry in HELD_OUT if not is_test(entry["path"])]
    assert len(library) >= 5
    assert sum(entry["tokens"] for entry in library) > 5_000


def test_held_out_loss_is_at_most_one_bit_per_byte() -> None:
    bits = sum(entry["nats"] for entry in HELD_OUT) / math.log(2)
    assert bits / sum(entry["bytes"] for entry in HELD_OUT) <= 1.0


def test_held_out_files_are_those_of_this_python() -> None:
    """Where a file exists it has the recorded content, or this is another Python than the model was trained with."""
    others = []
    for entry in HELD_OUT:
        path = LIBRARY / entry["path"]
        if not path.is_file():
            continue  # some systems leave the tests or idlelib out
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == entry["sha256"]:
            assert len(data) == entry["bytes"], entry["path"]
            assert len(encode(data.decode())) == entry["tokens"], entry["path"]
        else:
            others.append(entry["path"])
    if others:
        assert f"CPython {platform.python_version()}," not in (ROOT / "MODEL_CARD.md").read_text(), others
        pytest.skip(f"another Python: {len(others)} of {len(HELD_OUT)} held-out files differ: {', '.join(others)}")


def test_model_card_names_every_held_out_file() -> None:
    card = (ROOT / "MODEL_CARD.md").read_text()
    for entry in HELD_OUT:
        row = f"| `{entry['path']}` | {entry['bytes']:,} | {entry['tokens']:,} | `{entry['sha256']}` |"
        assert row in card.splitlines(), entry["path"]
    assert "PSF License Version 2" in card
    assert "Apache-2.0" in card
