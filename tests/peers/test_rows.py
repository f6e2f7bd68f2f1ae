"""Measurements as CSV: all faults of a bad file at once; what each good row asks, and why another is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from systolith.peers.cases import Refused, case_of, saturation
from systolith.peers.engines import engine_of
from systolith.peers.facts_file import packaged
from systolith.peers.model import Layout
from systolith.peers.rows import COLUMNS, Measurement, parse, read_measurements
from systolith.peers.validation import judge, report
from systolith.spec.errors import ConfigError
from tests.peers.helpers import GOLDEN, text_of


def rows_of(*rows: dict[str, str]) -> list[Measurement]:
    found, faults = parse(text_of(*rows), "a.csv")
    assert faults == []
    return found


def refusal(**row: str) -> str:
    with pytest.raises(Refused) as caught:
        case_of(rows_of(row)[0])
    return str(caught.value)


def test_all_faults_of_a_file_are_told_at_once() -> None:
    text = text_of(
        {"n_chips": "two"}, {"value": "-3"}, {"n_chips": "1.5", "value": "nan"}, {"id": "1"}, {}, {"notes": "a,b"}
    )
    lines = text.splitlines()
    lines[5] += ",more"
    lines[6] = lines[6].replace('"a,b"', '"a\nb"')
    _, faults = parse("\n".join(lines) + "\n", "a.csv")
    assert faults == [
        "a.csv:2: n_chips='two' must be a whole number 1..1000000, or blank",
        "a.csv:3: value='-3' must be a number above 0, or blank",
        "a.csv:4: n_chips='1.5' must be a whole number 1..1000000, or blank",
        "a.csv:4: value='nan' must be a number above 0, or blank",
        "a.csv:5: id=1 is that of line 2 too; give each row its own",
        "a.csv:6: has 19 fields, must have 18, as the header; quote commas",
        "a.csv:7: a quoted field runs over the end of the line; close its quotes",
    ]


def test_a_header_must_name_the_columns() -> None:
    _, faults = parse(text_of({}).replace("metric", "metrik"), "a.csv")
    assert [fault.split(";")[0] for fault in faults] == [
        "a.csv:1: the header lacks metric", "a.csv:1: the header has unknown 'metrik'",
    ]  # fmt: skip
    assert parse("", "a.csv")[1][0].startswith("a.csv: is empty; its first line must name the columns id, chip, ")
    few = [name for name in COLUMNS if name not in ("id", "notes", "kv_precision")]
    found, faults = parse("# a comment\n" + text_of({}, columns=tuple(few)), "a.csv")
    assert faults == []
    assert (found[0].line, found[0].kv_precision) == (3, "")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,chip\n\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"a.csv: byte 8 is not UTF-8; give a CSV file in UTF-8$"):
        read_measurements(path)
    with pytest.raises(ConfigError, match=r"b.csv: cannot be read \(No such file or directory\); check the path$"):
        read_measurements(tmp_path / "b.csv")


def test_random_byte_changes_are_refused_or_read() -> None:
    """Every change gives rows that are judged or refused one by one, or a list of faults; nothing else."""
    lines = (GOLDEN / "calibrate.csv").read_text().splitlines(keepends=True)
    data = "".join(lines[:1] + lines[1::20]).encode()
    facts, _ = packaged()
    rng = random.Random(1)
    whole = refused = 0
    for _ in range(500):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        try:
            text = bytes(changed).decode()
        except UnicodeDecodeError:
            continue
        rows, faults = parse(text, "a.csv")
        assert all(fault.startswith("a.csv") for fault in faults)
        if faults:
            refused += 1
            continue
        found = report(judge(rows, facts))
        assert found["counts"]["evaluated"] + found["counts"]["refused"] == len(rows)
        whole += 1
    assert whole > 50
    assert refused > 10


@pytest.mark.parametrize(
    ("row", "regime", "metric", "batch"),
    [
        ({"batch_or_concurrency": "1", "metric": "TTFT ms"}, "prefill", "TTFT", 1),
        ({"batch_or_concurrency": "1", "metric": "TPOT p50 ms"}, "single stream", "TPOT", 1),
        ({"batch_or_concurrency": "1", "metric": "ITL (mean) ms"}, "single stream", "TPOT", 1),
        ({"batch_or_concurrency": "1", "metric": "tokens/s/user"}, "single stream", "tokens/s/user", 1),
        ({"batch_or_concurrency": "bs=16", "metric": "batch end-to-end latency s"}, "static batch", "latency", 16),
        ({"batch_or_concurrency": "concurrency 32"}, "static batch", "output tokens/s", 32),
        ({"batch_or_concurrency": "8", "metric": "mean TTFT [ms]"}, "static batch", "TTFT", 8),
        ({"batch_or_concurrency": "max throughput (all requests queued)"}, "saturated", "output tokens/s", None),
        ({"batch_or_concurrency": "Offline"}, "saturated", "output tokens/s", None),
        ({"metric": "output throughput (tok/s)"}, "static batch", "output tokens/s", 8),
        ({"metric": "Time to first token", "unit_scope": "seconds"}, "static batch", "TTFT", 8),
    ],
)
def test_a_row_asks_for_a_regime_and_a_metric(row: dict[str, str], regime: str, metric: str, batch: int | None) -> None:
    case = case_of(rows_of(row)[0])
    assert (case.regime, case.metric) == (regime, metric)
    if batch is not None:
        assert case.sequences == batch


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chip": "H1000"}, "chip='H1000' is no device of the catalogue"),
        ({"chip": ""}, "chip='' is no device of the catalogue"),
        ({"model": "Llama-9"}, "model='Llama-9' is no model of the catalogue"),
        ({"model": "kimi-k2.5"}, "model='kimi-k2.5': its config is not known here with certainty"),
        ({"metric": "TTFT ms", "batch_or_concurrency": "concurrency 16"},
         "'concurrency 16': the first tokens of requests that come one after another need a queueing model"),
        ({"metric": "goodput tokens/s"}, "'goodput': requests that arrive by a rate need a queueing model"),
        ({"precision": "fp6"}, "precision='fp6' is no known format"),
        ({"kv_precision": "fp6"}, "kv_precision='fp6' is no known format"),
        ({"precision": "fp4"}, "h100 has no figure for its rate in fp4, which fp4 needs"),
        ({"batch_or_concurrency": "request rate 4/s"},
         "'request rate': requests that arrive by a rate need a queueing model"),
        ({"batch_or_concurrency": "QPS 3"}, "'QPS': requests that arrive by a rate need a queueing model"),
        ({"batch_or_concurrency": "Server scenario"}, "'Server': requests that arrive by a rate need a queueing model"),
        ({"batch_or_concurrency": ""},
         "batch_or_concurrency='' is neither a number of sequences nor the maximum throughput"),
        ({"metric": "p99 TTFT ms"}, "metric='p99 TTFT ms': a tail of latencies needs a queueing model"),
        ({"metric": "TTFT"}, "metric='TTFT' has no unit of time; write ms or s behind it"),
        ({"metric": "watts"}, "metric='watts' is none of output tokens/s, tokens/s/user, TTFT, TPOT, ITL, latency"),
        ({"metric": "total tokens/s"}, "metric='total tokens/s': counts other tokens than those that are made"),
        ({"input_len": "ShareGPT"}, "input_len='ShareGPT' is no number of tokens"),
        ({"output_len": ""}, "output_len='' is no number of tokens, and output tokens/s depends on it"),
        ({"value": ""}, "value is blank: nothing to compare with"),
        ({"notes": "with EAGLE-3"}, "'EAGLE': speculative decoding depends on an acceptance length that the row lacks"),
        ({"parallelism": "TP2"}, "n_chips=1 and parallelism='TP2', 2 devices, disagree"),
        ({"parallelism": "rings"}, "parallelism='rings' is none of TP, PP, DP, EP, DEP with their numbers"),
        ({"unit_scope": "per rack"}, "unit_scope='per rack' is neither of all devices nor of one"),
        ({"batch_or_concurrency": "max throughput", "metric": "TTFT ms"},
         "at full load all but the output tokens a second of all requests needs a queueing model"),
        ({"batch_or_concurrency": "100000"}, "100000 sequences of 256 tokens do not fit beside the weights: 4578 do"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_evaluated_says_why(row: dict[str, str], reason: str) -> None:
    assert refusal(**row) == reason


def test_words_that_only_look_like_another_machinery_are_no_reason() -> None:
    for notes in ("no speculative decoding", "MTP off", "without EAGLE", "serverless"):
        case_of(rows_of({"notes": notes})[0])


@pytest.mark.parametrize(
    ("text", "devices", "layout"),
    [
        ("TP8", 8, Layout(8)), ("tp=4 pp=2", 8, Layout(4, 1, 2)), ("TP8/EP8", 8, Layout(8)), ("DEP8", 8, Layout(1, 8)),
        ("EP8", 8, Layout(1, 8)), ("DP8+EP8", 8, Layout(1, 8)), ("TP2, DP4", 8, Layout(2, 1, 1, 4)), ("", 8, Layout(8)),
        ("TP24 cores (12 chips inf2.48xlarge)", 12, Layout(12)), ("TP1", "", Layout()), ("PP4", 4, Layout(1, 1, 4)),
    ],
)  # fmt: skip
def test_layouts(text: str, devices: int | str, layout: Layout) -> None:
    row = {"model": "Qwen3-235B-A22B", "parallelism": text, "n_chips": str(devices), "chip": "B300"}
    assert case_of(rows_of(row)[0]).layout == layout


def test_per_device_is_the_total_over_devices() -> None:
    more = {"n_chips": "4", "parallelism": "TP4"}
    total, each = (case_of(r) for r in rows_of({**more}, {**more, "unit_scope": "per GPU"}))
    assert total.value(1.0, 1.0) == 4 * each.value(1.0, 1.0)


def test_blank_fields_are_told_with_what_they_were_taken_to_be() -> None:
    row = {
        "precision": "",
        "kv_precision": "",
        "parallelism": "",
        "n_chips": "2",
        "metric": "TPOT ms",
        "output_len": "",
    }
    assert case_of(rows_of(row)[0]).assumed == (
        "parallelism: TP2", "precision: bf16", "kv_precision: bf16", "output_len: decoding right behind the prompt",
    )  # fmt: skip


def test_engines_of_versions() -> None:
    old, new = engine_of("TRT-LLM v0.6.1/v0.5"), engine_of("TRT-LLM v1.0 trtllm-bench")
    assert (old.reads_groups_once, old.fixed_batch, old.attention_by_data) == (False, True, False)
    assert (new.reads_groups_once, new.fixed_batch, new.attention_by_data) == (True, False, True)
    assert not engine_of("TRT-LLM v1.1+ trtllm-bench").attention_by_data
    assert engine_of("TRT-LLM v0.10").reads_groups_once
    assert new.requests(128, 2048) == 3000
    assert engine_of("vLLM 0.6").requests(128, 2048) is None


def simulate(prompt: int, output: int, most: int, requests: int) -> tuple[int, float]:
    """An engine step by step: (steps, mean sequences), prompts entering as a step's tokens allow."""
    budget = min(max(most * (1 + prompt / output), 2048), 32768)
    waiting, running, steps, work, room = requests, [], 0, 0, 0.0
    while waiting or running:
        room = min(room + max(budget - len(running), 0.0), max(budget, prompt))
        while waiting and len(running) < most and room >= prompt:
            running.append(output)
            waiting, room = waiting - 1, room - prompt
        work += len(running)
        running = [left - 1 for left in running if left > 1]
        steps += 1
    return steps, work / steps


@pytest.mark.parametrize(
    ("prompt", "output", "most", "requests"),
    [(128, 2048, 400, 3000), (128, 128, 900, 9000), (1000, 1000, 500, 3000), (2048, 128, 450, 3000),
     (500, 2000, 800, 600),
     (1024, 8192, 100, 1500), (128, 2048, 1000, 500)],
)  # fmt: skip
def test_waves_of_requests_are_those_of_a_simulated_engine(prompt: int, output: int, most: int, requests: int) -> None:
    steps, prompts, sequences = saturation(prompt, output, most, requests)
    want, mean = simulate(prompt, output, most, requests)
    assert steps == pytest.approx(want, rel=0.16)
    assert sequences == pytest.approx(mean, rel=0.16)
    assert sequences * steps == pytest.approx(prompts * output)


def test_without_end_an_engine_is_full() -> None:
    assert saturation(128, 1024, 77, None) == (1024, 77, 77)
