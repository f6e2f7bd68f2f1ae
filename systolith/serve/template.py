"""Chat templates: Jinja text of the tokenizer's files that turns messages into the prompt the model was trained on.

Rendered as transformers renders them: sandboxed and immutable, blocks trimmed, with `raise_exception`,
`strftime_now`, `tojson` that escapes no HTML, loop controls, and the block `generation`, which means nothing here.
A model without a template gets PLAIN, and the server says so when it starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from systolith.serve.errors import bad_request
from systolith.spec.errors import ConfigError, ModelError

__all__ = ["PLAIN", "ChatTemplate"]

PLAIN = "{{ messages | map(attribute='content') | join('\n') }}"
"""The contents, a line each: what a model that was not trained on conversations can go on from."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says, for training; it renders what it holds."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False} | options)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


@dataclass(frozen=True)
class ChatTemplate:
    """source : where it comes from; "" for PLAIN.   special_tokens : whether the tokenizer adds its own to the text."""

    template: jinja2.Template
    variables: Mapping[str, str]
    source: str

    @property
    def special_tokens(self) -> bool:
        """A template writes its special tokens itself; a plain text gets those that the tokenizer gives any text."""
        return not self.source

    @staticmethod
    def open(model: Path, file: Path | None = None) -> ChatTemplate:
        """The template of `file`, else of chat_template.jinja or tokenizer_config.json of a model, else PLAIN.

        Raises ConfigError for a given file, ModelError for a model's, in one sentence.
        """
        config = _tokenizer_config(model)
        variables = {
            key: text
            for key, value in config.items()
            if key.endswith("_token") and isinstance(text := _content(value), str)
        }
        kind: type[ConfigError | ModelError] = ModelError
        beside = model / "chat_template.jinja"
        if file is not None:
            source, text, kind = str(file), _read(file), ConfigError
        elif beside.is_file():
            source, text = str(beside), _read(beside)
        elif (given := config.get("chat_template")) is not None:
            source, text = f"{model / 'tokenizer_config.json'}: chat_template", _default(given, model)
        else:
            source, text = "", PLAIN
        try:
            return ChatTemplate(_environment().from_string(text), variables, source)
        except jinja2.TemplateSyntaxError as error:
            raise kind(f"{source}: line {error.lineno} is no chat template ({_line(error)}); mend it") from None
        except RecursionError:
            raise kind(f"{source}: is nested too deeply for a chat template; mend it") from None

    def render(self, messages: Sequence[Mapping[str, Any]], further: Mapping[str, Any]) -> str:
        """The prompt of a conversation. Raises ApiError where the template refuses it."""
        try:
            return self.template.render(
                {"tools": None, "documents": None, "add_generation_prompt": True, **self.variables, **further}
                | {"messages": [dict(m) for m in messages]}
            )
        except Exception as error:  # a template is a program: whatever it raises, this conversation is what it refuses
            raise bad_request(
                f"the model's chat template refuses the messages ({_line(error)}); change them", "messages"
            ) from None


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: the chat template cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} of the chat template is not UTF-8; give UTF-8 text") from None


def _tokenizer_config(model: Path) -> Mapping[str, Any]:
    """tokenizer_config.json; nothing where a model has none."""
    path = model / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not valid JSON ({_line(error)}); fetch the file again or mend it") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object; fetch the file again or mend it")
    return value


def _content(value: Any) -> Any:
    """The text of a special token, which older files wrap."""
    return value.get("content") if isinstance(value, dict) else value


def _default(value: Any, model: Path) -> str:
    """A template, or the one called `default` of several."""
    if isinstance(value, list):
        named = {
            t.get("name"): t.get("template") for t in value if isinstance(t, dict) and isinstance(t.get("name"), str)
        }
        value = named.get("default")
    if not isinstance(value, str):
        path = model / "tokenizer_config.json"
        raise ModelError(f"{path}: chat_template must be a text, or a list with one called default; mend the file")
    return value
