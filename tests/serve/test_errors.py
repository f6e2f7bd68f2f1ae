"""What clients are told: OpenAI's error object, the right status, one sentence. Nothing of the framework's own."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

from systolith.serve.fields import FIELDS
from tests.serve.fake import LOSE, REFUSE
from tests.serve.helpers import FAKE, Answered, Server, running

TALK = [{"role": "user", "content": "hello"}]

BAD = [
    ("text", {"prompt": "x", "temperature": "hot"},
     'temperature="hot" must be a number, 0 or more; correct the request'),
    ("text", {"prompt": "x", "temperature": -1}, "temperature=-1 must be a number, 0 or more; correct the request"),
    ("text", {"prompt": "x", "temperature": 1e-60}, None),
    ("text", {"prompt": "x", "top_p": 1.5}, "top_p=1.5 must be a number 0..1; correct the request"),
    ("text", {"prompt": "x", "max_tokens": 0},
     "max_tokens=0 must be a whole number 1..2147483648; correct the request"),
    ("text", {"prompt": "x", "max_tokens": True},
     "max_tokens=true must be a whole number 1..2147483648; correct the request"),
    ("text", {"prompt": "x", "n": 129}, "n=129 must be a whole number 1..128; correct the request"),
    ("text", {"prompt": "x", "n": 13},
     "prompts x n asks for 13 choices, this server holds 12; ask for fewer at once"),
    ("text", {"prompt": "x", "seed": 1 << 64},
     "seed=18446744073709551616 must be a whole number of 64 bits; correct the request"),
    ("text", {"prompt": "x", "stop": [""]},
     'stop=[""] must be a string or at most 16 strings, each of 1..256 characters; correct the request'),
    ("text", {"prompt": "x", "best_of": 2}, "best_of=2 must be 1, nothing else is offered here; correct the request"),
    ("text", {"prompt": "x", "echo": True, "logprobs": 0},
     "echo cannot go with logprobs, prompts have none here; leave one out"),
    ("text", {"prompt": "x", "temprature": 1},
     '"temprature" is no field of this request (did you mean temperature?); leave it out'),
    ("text", {"prompt": "x", "stream_options": {"include_usage": True}},
     "stream_options goes with stream=true only; leave it out"),
    ("text", {"prompt": [1, 2048]}, "prompt: token 2048 must be 0..2047; give ids of this model"),
    ("text", {"prompt": [[1], []]}, "prompt holds no token; give some text"),
    ("text", {"prompt": []},
     "prompt=[] must be a string, a list of token ids, a list of strings or a list of such lists; correct the request"),
    ("text", {}, "prompt is missing; give a text or token ids"),
    ("text", {"prompt": [7] * 250, "max_tokens": 7},
     "prompt has 250 tokens and 7 are to be made, more than this server's context of 256; shorten it or ask for fewer"),
    ("text", {"prompt": [7] * 256},
     "prompt has 256 tokens and at least 1 is to be made, more than this server's context of 256; "
     "shorten it or ask for fewer"),
    ("text", {"prompt": [REFUSE]}, "token 2044 is refused; give another"),
    ("chat", {}, "messages is missing; give a list of messages"),
    ("chat", {"messages": []}, "messages=[] must be a list of at least one message; correct the request"),
    ("chat", {"messages": [{"role": "robot", "content": "x"}]}, None),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
    ("chat", {"messages": TALK, "top_logprobs": 2}, "top_logprobs goes with logprobs=true only; set it"),
    ("chat", {"messages": TALK, "max_tokens": 1, "max_completion_tokens": 2},
     "max_tokens and max_completion_tokens differ; give one of them"),
    ("chat", {"messages": TALK, "tools": [{"type": "function"}]}, None),
    ("chat", {"messages": TALK, "prompt": "x"}, None),
]  # fmt: skip


def post(server: Server, api: str, fields: dict[str, Any]) -> Answered:
    path = "/v1/completions" if api == "text" else "/v1/chat/completions"
    return server.post(path, {"model": "tinycode"} | fields)


@pytest.mark.parametrize(("api", "fields", "sentence"), BAD, ids=range(len(BAD)))
def test_a_bad_request_is_400_and_one_sentence(
    fake: Server, api: str, fields: dict[str, Any], sentence: str | None
) -> None:
    for stream in (False, True):
        answer = post(fake, api, fields | ({"stream": True} if stream else {}))
        if stream and "stream_options" in fields:
            assert answer.events[-1]["usage"]["completion_tokens"] == 16
            continue
        error = answer.error
        assert (answer.status, error["type"]) == (400, "invalid_request_error")
        assert sentence is None or error["message"] == sentence
        field = next(iter(fields), None)
        assert error["param"] is not None or field is None or "prompt" in fields
        assert (error["code"] == "context_length_exceeded") == ("context of" in error["message"])


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body is not JSON (Expecting value: line 1 column 1 (char 0)); send one JSON object"),
        (b"[1]", "the body is [1]; send one JSON object"),
        (b'{"a": 1, "a": 2}', 'the body is not JSON (the key "a" stands twice); send one JSON object'),
        (b'{"temperature": NaN}', "the body is not JSON (NaN is not a JSON number); send one JSON object"),
        (b'{"model": "\xff"}', "the body is not UTF-8 at byte 11; send JSON in UTF-8"),
        (b'{"model": "\\ud83d"}', "the body holds half a surrogate pair; send whole characters"),
        (b"[" * 100_000, "the body is nested too deeply; send the object that the API describes"),
        (b'{"model": 1' + b"0" * 5000 + b"}", None),
    ],
)
def test_a_body_that_is_no_object(fake: Server, body: bytes, sentence: str | None) -> None:
    answer = fake.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert sentence is None or answer.error["message"] == sentence


def test_an_unknown_model_is_404(fake: Server) -> None:
    answers = [
        fake.post("/v1/completions", {"model": "gpt-9", "prompt": "x"}),
        fake.post("/v1/chat/completions", {"model": "gpt-9", "messages": TALK}),
        fake.get("/v1/models/gpt-9"),
    ]
    for answer in answers:
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
        assert answer.error["message"] == "the model 'gpt-9' does not exist here; this server has tinycode"


def test_routes_that_are_not_there(fake: Server) -> None:
    answer = fake.get("/v1/embeddings")
    assert (answer.status, answer.error["message"]) == (
        404, "there is no /v1/embeddings here; docs/serve.md lists what there is",
    )  # fmt: skip
    answer = fake.get("/v1/completions")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error["message"] == "GET is not offered for /v1/completions; docs/serve.md lists what is"


def test_an_oversized_body_is_413(fake: Server) -> None:
    answer = fake.post("/v1/completions", b" " * (2 << 20))
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_a_fault_in_the_engine_s_door_is_500_for_that_request_alone(fake: Server) -> None:
    answer = fake.complete(prompt=[LOSE])
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert fake.complete(prompt="x").status == 200


def test_api_keys() -> None:
    with running(engine=FAKE, keys=["first", "second"]) as server:
        assert server.get("/health").status == 200
        for headers in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first"}):
            for answer in (
                server.request("GET", "/v1/models", headers=headers),
                server.request("POST", "/v1/completions", b"not even JSON", headers),
            ):
                assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert server.request("GET", "/v1/models", headers={"Authorization": "Bearer second"}).status == 200


def test_clients_that_hang_up_or_dawdle_hold_nobody_up(fake: Server) -> None:
    """Half a request, then nothing: others are served."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(fake.address) as slow, socket.create_connection(fake.address) as gone:
        slow.sendall(head)
        gone.sendall(head)
        gone.close()
        start = time.monotonic()
        assert json.loads(fake.complete(prompt="x", max_tokens=1).data)["usage"]["completion_tokens"] == 1
        assert time.monotonic() - start < 5


def test_no_value_of_any_field_is_a_fault_of_ours(fake: Server) -> None:
    """Every field with values of every type: an answer, or a refusal that names the field."""
    odd: list[Any] = [
        None, True, False, 0, 1, -1, 3.5, 1e308, 10**400, "", "a", "\0é🙂", [], [0], ["a"], [None], [[1], ["a"]], {},
        {"a": [1]}, {"role": "user"}, [{"role": "user", "content": None}],
        [{"role": "user", "content": "x", "name": 7}],
    ]  # fmt: skip
    for field in FIELDS:
        for api in field.apis:
            good = {"prompt": [5]} if api == "text" else {"messages": TALK}
            for value in odd:
                answer = post(fake, api, good | {"max_tokens": 2} | {field.name: value})
                if answer.status != 200:
                    assert answer.status in (400, 404), (field.name, value, answer.data)
                    assert field.name in answer.error["message"] or answer.error["param"] is not None
    assert fake.get("/health").status == 200
