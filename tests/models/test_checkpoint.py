"""Model directories: what is read, exactly, and what is refused before anything is read."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from systolith.models.checkpoint import Checkpoint
from systolith.models.reference import interpret
from systolith.models.safetensors_file import SafetensorsFile, to_float32
from systolith.spec.errors import ModelError

from .conftest import SMALL_LLAMA, fuzz_file, tensors_of
from .test_reference import GPT_OSS, MXFP4

MakeModel = Callable[..., Path]


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors of a model directory."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_tensors_and_rows_are_read_exactly(make_model: MakeModel) -> None:
    checkpoint = Checkpoint.open(make_model())
    for name, expected in tensors_of(SMALL_LLAMA).items():
        np.testing.assert_array_equal(checkpoint.tensor(name), expected)
    table = tensors_of(SMALL_LLAMA)["model.embed_tokens.weight"]
    np.testing.assert_array_equal(checkpoint.rows("model.embed_tokens.weight", 5, 9), table[5:9])
    assert checkpoint.bytes == sum(t.nbytes for t in tensors_of(SMALL_LLAMA).values())


@pytest.mark.parametrize(("name", "dtype"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_every_code_of_a_half_precision_type_becomes_the_same_number(name: str, dtype: Any) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    got = to_float32(codes.view(np.uint8), name)
    with np.errstate(invalid="ignore"):
        expected = codes.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(got, expected)  # NaN equals NaN here
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


def test_types_and_shards_do_not_change_what_is_computed(make_model: MakeModel) -> None:
    ids = [3, 4, 5]
    one, many = Checkpoint.open(make_model("one")), Checkpoint.open(make_model("many", shards=3))
    assert one.sha256 == many.sha256
    assert len({file.path for file in many.files.values()}) == 3
    np.testing.assert_array_equal(interpret(one.graph, one, ids), interpret(many.graph, many, ids))
    path = make_model("half")
    rewrite(path, lambda t: t.update({n: v.astype(np.float16) for n, v in t.items()}))
    half = Checkpoint.open(path)
    assert half.bytes == one.bytes // 2
    assert half.sha256 != one.sha256
    np.testing.assert_allclose(interpret(half.graph, half, ids), interpret(one.graph, one, ids), atol=0.05)


def test_the_hash_sees_tensors_and_meaning_and_not_harmless_fields(make_model: MakeModel) -> None:
    first = Checkpoint.open(make_model("a"))
    assert first.sha256 == Checkpoint.open(make_model("b", use_cache=False, transformers_version="4.40")).sha256
    assert first.sha256 != Checkpoint.open(make_model("c", rope_theta=20000.0)).sha256
    assert first.sha256 != Checkpoint.open(make_model("d", seed=1)).sha256


def test_stop_tokens_come_from_generation_config(make_model: MakeModel) -> None:
    path = make_model()
    (path / "generation_config.json").write_text('{"eos_token_id": [7, 9], "temperature": 0.6}')
    assert Checkpoint.open(path).graph.eos_ids == (7, 9)
    (path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert Checkpoint.open(path).graph.eos_ids == (2,)
    (path / "generation_config.json").write_text('{"eos_token_id": [64]}')
    with pytest.raises(
        ModelError,
        match=r"^.*generation_config\.json: eos_token_id=\[64\] must be a token id 0\.\.63 or a list of them; "
        r"correct the file$",
    ):
        Checkpoint.open(path)


def test_rotary_tables_of_old_checkpoints_are_passed_over(make_model: MakeModel) -> None:
    path = make_model()
    inv_freq = np.ones(4, np.float32)
    rewrite(path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": inv_freq}))
    assert Checkpoint.open(path).sha256 == Checkpoint.open(make_model("plain")).sha256


def test_a_head_beside_a_tied_table_must_equal_it(make_model: MakeModel) -> None:
    path = make_model(tie_word_embeddings=True)
    rewrite(path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    Checkpoint.open(path)
    rewrite(path, lambda t: t["lm_head.weight"].__setitem__((3, 3), 0.5))
    with pytest.raises(
        ModelError,
        match=r"^.*: tie_word_embeddings is true and lm_head\.weight differs from model\.embed_tokens\.weight; "
        r"set it to false or remove lm_head\.weight$",
    ):
        Checkpoint.open(path)


def test_numbers_that_are_not_finite_are_legal(make_model: MakeModel) -> None:
    path = make_model()
    rewrite(path, lambda t: t["model.layers.0.mlp.up_proj.weight"].__setitem__((0, 0), np.nan))
    checkpoint = Checkpoint.open(path)
    assert np.isnan(interpret(checkpoint.graph, checkpoint, [3])).all()


BELONGS = "use the config.json that belongs to these tensors"
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(Q), rf"lacks the tensor {Q}, which the config asks for; {BELONGS}$"),
        (
            lambda t: t.update({"model.layers.2.extra": t[Q], "a": t[Q], "b": t[Q], "c\n": t[Q]}),
            rf"holds the tensors a, b, c\\n and 1 more, for which the config has no use; {BELONGS}$",
        ),
        (
            lambda t: t.update({Q: t[Q][:-1].copy()}),
            rf"tensor {Q} of model\.safetensors has shape \[31, 32\], must have \[32, 32\]; {BELONGS}$",
        ),
        (
            lambda t: t.update({Q: t[Q].astype(np.float64)}),
            rf"tensor {Q} of model\.safetensors has type F64, must be one of F32, F16, BF16; {BELONGS}$",
        ),
    ],
    ids=["missing", "extra", "shape", "type"],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, np.ndarray]], object], sentence: str, make_model: MakeModel
) -> None:
    path = make_model()
    rewrite(path, change)
    with pytest.raises(ModelError, match=r"^\S*/model: " + sentence):
        Checkpoint.open(path)


def test_many_faults_are_cut_short(make_model: MakeModel) -> None:
    path = make_model()
    rewrite(path, lambda t: t.update({n: v.astype(np.float64) for n, v in t.items()}))
    with pytest.raises(ModelError, match=rf"^.*; and 13 more faults; {BELONGS}$"):
        Checkpoint.open(path)


FIRST = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
AGAIN = "; fetch the file again$"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", r"its header is not valid JSON: Expecting property name enclosed in double quotes at line 1, column 2"),
        (b"\xff", r"its header is not valid JSON: byte 0 is not UTF-8"),
        ([], r"its header is no JSON object"),
        ({"a": 3}, r'tensor "a" is 3, must have dtype, shape and data_offsets'),
        ({"a": {**FIRST, "dtype": "F31"}}, r'tensor "a" has dtype "F31", must be one of BOOL, U8, .*'),
        ({"a": {**FIRST, "shape": [-2]}}, r'tensor "a" has shape \[-2\], must be a list of sizes'),
        ({"a": {**FIRST, "shape": [True, 2]}}, r'tensor "a" has shape \[true, 2\], must be a list of sizes'),
        ({"a": {**FIRST, "data_offsets": [0, 9]}}, r'tensor "a" has data_offsets \[0, 9\], must be two within 0\.\.8'),
        ({"a": {**FIRST, "data_offsets": [8, 0]}}, r'tensor "a" has data_offsets \[8, 0\], must be two within 0\.\.8'),
        ({"a": {**FIRST, "shape": [3]}}, r'tensor "a" of F32 \[3\] needs 12 bytes and has 8'),
        ({"a": {**FIRST, "shape": [1 << 61, 1 << 61]}}, r'tensor "a" of F32 \[\d+, \d+\] needs \d+ bytes and has 8'),
        ({"a": FIRST, "b": FIRST}, r'tensor "b" starts at byte \d+, the one before it ends at \d+'),
        ({"a": {**FIRST, "shape": [1], "data_offsets": [0, 4]}}, r"its tensors end at byte \d+, the file at \d+"),
        ({"a": {**FIRST, "shape": [1], "data_offsets": [4, 8]}}, r'tensor "a" starts at byte \d+, .* ends at \d+'),
    ],
)
def test_a_damaged_header_is_refused(header: object, reason: str, tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(ModelError, match=rf"^.*x\.safetensors: is not a whole safetensors file \({reason}\){AGAIN}"):
        SafetensorsFile.open(path)


def test_a_truncated_file_is_refused(make_model: MakeModel) -> None:
    file = make_model() / "model.safetensors"
    data = file.read_bytes()
    for size, reason in (
        (len(data) - 1, r"tensor \S+ has data_offsets \[\d+, \d+\], must be two within 0\.\.\d+"),
        (100, r"its header says \d+ bytes, the file has 92 after that number"),
        (5, r"it has 5 bytes, a header takes at least 8"),
    ):
        file.write_bytes(data[:size])
        with pytest.raises(
            ModelError, match=rf"^.*model\.safetensors: is not a whole safetensors file \({reason}\){AGAIN}"
        ):
            Checkpoint.open(file.parent)


def test_a_file_that_shrinks_while_it_is_open_is_noticed(make_model: MakeModel) -> None:
    checkpoint = Checkpoint.open(make_model())
    file = checkpoint.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    last = max(checkpoint.files, key=lambda name: checkpoint.stored(name).offset)
    with pytest.raises(
        ModelError,
        match=r"^.*model\.safetensors: tensor \S+ ends after \d+ of \d+ bytes, the file was whole when it was opened; "
        r"leave the file alone while it is read$",
    ):
        checkpoint.tensor(last)


def test_directories_without_a_model_are_refused(tmp_path: Path, make_model: MakeModel) -> None:
    give = "give a directory with config.json, model.safetensors and tokenizer.json$"
    with pytest.raises(ModelError, match=rf"^\S+/none: not found; {give}"):
        Checkpoint.open(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=rf"^\S+/file: is no directory; {give}"):
        Checkpoint.open(tmp_path / "file")
    with pytest.raises(ModelError, match=rf"^x{{3000}}: cannot be read \(File name too long\); {give}"):
        Checkpoint.open("x" * 3000)
    path = make_model()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(
        ModelError,
        match=r"^\S+/model: has neither model\.safetensors nor model\.safetensors\.index\.json; convert "
        r"pytorch_model\.bin to safetensors$",
    ):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda i: i.update(weight_map=[]),
            r"weight_map=\[\] must map names of tensors to files; fetch the file again$",
        ),
        (
            lambda i: i["weight_map"].update({Q: "../model.safetensors"}),
            rf'tensor "{Q}" lies in "\.\./model\.safetensors", must be a \.safetensors file of this directory; '
            r"fetch the file again$",
        ),
        (
            lambda i: i["weight_map"].update({"x": "model-00001-of-00002.safetensors"}),
            r'tensor "x" is not in model-00001-of-00002\.safetensors; fetch the index and its shards again$',
        ),
        (
            lambda i: i["weight_map"].pop(Q),
            rf'tensor "{Q}" of model-0000\d-of-00002\.safetensors is not listed; fetch the index again$',
        ),
    ],
    ids=["no_map", "outside", "not_there", "not_listed"],
)
def test_an_index_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], sentence: str, make_model: MakeModel
) -> None:
    path = make_model(shards=2)
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"^\S+/model\.safetensors\.index\.json: " + sentence):
        Checkpoint.open(path)


def test_a_missing_shard_is_named(make_model: MakeModel) -> None:
    path = make_model(shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"^\S+/model-00002-of-00002\.safetensors: not found; fetch the whole checkpoint again$"
    ):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("model.safetensors", {}),
        ("model.safetensors.index.json", {"shards": 2}),
        ("model.safetensors", {**GPT_OSS, **MXFP4, "num_local_experts": 3}),
    ],
    ids=["one_file", "index", "mxfp4"],
)
def test_500_random_byte_changes_end_in_a_sentence_or_normally(
    file: str, changes: dict[str, Any], make_model: MakeModel
) -> None:
    path = make_model(**changes, num_hidden_layers=1)
    header = (path / file).read_bytes()[:2000]

    def attempt() -> None:
        checkpoint = Checkpoint.open(path)
        interpret(checkpoint.graph, checkpoint, [1, 3])

    report = fuzz_file(path / file, attempt, seed=5, places=range(len(header)))
    assert len(report.refusals) > 100
    assert report.normal > 100 or "index" in file
