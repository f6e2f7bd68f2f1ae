"""The HTTP side: routes, API keys, the size of bodies, server-sent events, and what a client that leaves sets off."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from systolith import __version__
from systolith.serve.answers import Answer
from systolith.serve.errors import ApiError, engine_lost
from systolith.serve.fields import parse_body, read_fields
from systolith.serve.generation import Asked, Generation, Served
from systolith.serve.metrics import Metrics
from systolith.serve.process import EngineProcess

__all__ = ["Service", "make_app"]

_BODY_S = 60.0
"""A body that takes longer to arrive is given up."""
_DROPPED_BYTES = 64 << 20
"""Of a body that is too large, this much more is read before the connection is closed."""
_GONE = 499
"""The client has left; the number is nginx's."""


@dataclass(frozen=True)
class Service:
    """What the routes need. keys: API keys, none to ask for none; max_body_bytes: larger bodies are refused."""

    served: Served
    engine: EngineProcess
    metrics: Metrics
    keys: Sequence[str]
    max_body_bytes: int


def make_app(service: Service) -> FastAPI:
    """The application. The engine must have been started; it is attached when the server's event loop runs."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.on_stats = service.metrics.take
        service.engine.attach()
        yield
        await asyncio.to_thread(service.engine.close)

    # No pages of documentation: they fetch their scripts from elsewhere. docs/serve.md is the documentation.
    app = FastAPI(
        title="Systolith", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    _add_errors(app)
    served = service.served

    @app.get("/health")
    async def health() -> Response:
        if not service.engine.alive:
            raise engine_lost(service.engine.failure)
        return _json({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        _check_key(service, request)
        return _json({"object": "list", "data": [_model(served)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        _check_key(service, request)
        if name != served.name:
            raise ApiError(
                404, f"the model {name[:100]!r} does not exist here; this server has {served.name}",
                param="model", code="model_not_found",
            )  # fmt: skip
        return _json(_model(served))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _guarded(service, request, "text")

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _guarded(service, request, "chat")

    return app


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return Response(data, status, headers, "application/json")


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.name, "object": "model", "created": served.created, "owned_by": "systolith",
        "max_model_len": served.context, "chip": served.chip,
    }  # fmt: skip


def _add_errors(app: FastAPI) -> None:
    """Every error has OpenAI's shape, those of the framework too."""

    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _json(error.body, error.status, error.headers)

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = {
            404: f"there is no {request.url.path[:200]} here; docs/serve.md lists what there is",
            405: f"{request.method} is not offered for {request.url.path[:200]}; docs/serve.md lists what is",
        }.get(error.status_code, str(error.detail))
        body = ApiError(error.status_code, sentence).body
        return _json(body, error.status_code, dict(error.headers or {}))

    async def unknown(_: Request, error: Exception) -> Response:
        return await known(_, _fault(error))

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=_GONE)  # nobody reads it

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, unknown)


def _fault(error: BaseException) -> ApiError:
    """A fault of our own: the place goes to stderr, the client hears that it is ours."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    name = "/".join(place.filename.split("/")[-3:])
    print(f"systolith: fault in Systolith itself: {error!r} at {name}:{place.lineno}; report it", file=sys.stderr)
    return ApiError(500, f"fault in Systolith itself ({type(error).__name__}); report it", "server_error")


def _check_key(service: Service, request: Request) -> None:
    if not service.keys:
        return
    given = request.headers.get("authorization", "")
    scheme, _, key = given.partition(" ")
    # Each key is compared in the same time, whatever it begins with.
    good = [hmac.compare_digest(key.strip().encode(), known.encode()) for known in service.keys]
    if scheme.lower() != "bearer" or not any(good):
        said = "the API key is wrong" if given else "no API key was given"
        raise ApiError(
            401, f"{said}; send it as Authorization: Bearer KEY", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


async def _body(service: Service, request: Request) -> bytes:
    """The body, if it is no larger than allowed. What is too large is read and dropped, so that the client, which may
    not listen before it has sent everything, hears why."""
    limit = service.max_body_bytes
    data, size = bytearray(), 0
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    data += chunk
                elif size > limit + _DROPPED_BYTES:
                    break
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {_BODY_S:g} s; send it again") from None
    if size > limit:
        raise ApiError(
            413, f"the body has more than {limit} bytes, no prompt of this server's context needs as many; shorten it",
            code="request_too_large", headers={"Connection": "close"},
        )  # fmt: skip
    return bytes(data)


async def _guarded(service: Service, request: Request, api: str) -> Response:
    try:
        return await _answer(service, request, api)
    except (ApiError, ClientDisconnect):
        raise
    except Exception as error:  # here, as the framework would print forty lines
        raise _fault(error) from error


async def _answer(service: Service, request: Request, api: str) -> Response:
    """Answer a request, whole or as a stream."""
    _check_key(service, request)
    fields = read_fields(parse_body(await _body(service, request)), api)
    asked = await Asked.read(service.served, api, fields)
    with contextlib.ExitStack() as stack:
        generation = stack.enter_context(Generation(service.served, service.engine, service.metrics, asked))
        answer = Answer(generation)
        # A client may leave while its request waits in the engine's pipe.
        if not await _unless_gone(request.receive, generation.start()):
            return Response(status_code=_GONE)
        if fields["stream"]:
            return _EventStream(generation, answer, stack.pop_all())
        parts = []

        async def collect() -> None:
            async for part in generation.parts():
                parts.append(part)

        if not await _unless_gone(request.receive, collect()):
            return Response(status_code=_GONE)
        return _json(answer.whole(parts))


async def _unless_gone(receive: Receive, work: Any) -> bool:
    """Run `work` to its end, or until the client leaves; say whether it ended."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class _EventStream(Response):
    """Server-sent events of a generation; `resources` are let go when it ends, however that happens."""

    def __init__(self, generation: Generation, answer: Answer, resources: contextlib.ExitStack) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._generation, self._answer, self._resources = generation, answer, resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._resources:
            await _unless_gone(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            for index in range(len(self._generation.choices)):
                await _event(send, self._answer.first(index))
            async for part in self._generation.parts():
                await _event(send, self._answer.chunk(part))
            await _event(send, self._answer.last())
        except ApiError as error:
            await _event(send, error.body)
        except Exception as error:
            await _event(send, _fault(error).body)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _event(send: Callable[[Any], Awaitable[None]], value: dict[str, Any] | None) -> None:
    """Send an event; None is none."""
    if value is not None:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})
