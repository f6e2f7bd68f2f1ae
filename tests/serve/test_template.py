"""Chat templates: the text that transformers gives, and refusals in one sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from systolith.serve.errors import ApiError
from systolith.serve.template import ChatTemplate
from systolith.spec.errors import ConfigError, ModelError, SystolithError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Où est l'été ? <b>🙂</b>"},
    {"role": "assistant", "content": "Ici."},
    {"role": "user", "content": "Merci\n"},
]
CHATML = """\
{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LOOPS = """\
{{ bos_token }}{% set ns = namespace(last='') %}
{%- for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.last = m.role %}
    {%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}
    {%- else %}[INST] {{ m.content | trim }} [/INST]{% endif %}
{%- endfor %}{{ messages | tojson }}{{ ns.last }}{{ tools is none }}
"""


def model(folder: Path, template: Any, **more: Any) -> Path:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template} | more
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("text", [CHATML, LOOPS])
def test_the_text_is_that_of_transformers(tmp_path: Path, text: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    want, _ = render_jinja_template(
        [TALK], chat_template=text, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    found = ChatTemplate.open(model(tmp_path, text))
    assert found.render(TALK, {}) == want[0]
    assert not found.special_tokens


def test_a_file_beside_the_config_wins_and_a_given_file_wins_over_both(tmp_path: Path) -> None:
    model(tmp_path, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "config"}])
    assert ChatTemplate.open(tmp_path).render(TALK, {}) == "config"
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert ChatTemplate.open(tmp_path).render(TALK, {}) == "beside"
    (tmp_path / "mine.jinja").write_text("mine {{ enable_thinking }}")
    assert ChatTemplate.open(tmp_path, tmp_path / "mine.jinja").render(TALK, {"enable_thinking": False}) == "mine False"


def test_a_model_without_a_template_goes_on_from_the_contents(tmp_path: Path) -> None:
    found = ChatTemplate.open(tmp_path)
    assert found.render(TALK[:2], {}) == "Be brief.\nOù est l'été ? <b>🙂</b>"
    assert (found.source, found.special_tokens) == ("", True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].nothing.at_all }}", "'dict object' has no attribute 'nothing'"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe."),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_what_a_template_refuses_is_the_request_s_fault(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ApiError) as caught:
        ChatTemplate.open(model(tmp_path, text)).render(TALK, {})
    assert caught.value.message == f"the model's chat template refuses the messages ({reason}); change them"
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_bad_templates_are_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    with pytest.raises(
        ModelError, match=r"^\S+tokenizer_config.json: chat_template: line 1 is no chat template \(.*\); mend it$"
    ):
        ChatTemplate.open(model(tmp_path, "{% if %}"))
    with pytest.raises(
        ModelError, match=r"^\S+: chat_template must be a text, or a list with one called default; mend"
    ):
        ChatTemplate.open(model(tmp_path, 7))
    config.write_text('{"a"')
    with pytest.raises(ModelError, match=r"^\S+: is not valid JSON \(.*\); fetch the file again or mend it$"):
        ChatTemplate.open(tmp_path)
    config.unlink()
    with pytest.raises(
        ConfigError, match=r"^\S+none.jinja: the chat template cannot be read \(No such file or directory\)"
    ):
        ChatTemplate.open(tmp_path, tmp_path / "none.jinja")
    bad = tmp_path / "bad.jinja"
    bad.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"^\S+: byte 0 of the chat template is not UTF-8; give UTF-8 text$"):
        ChatTemplate.open(tmp_path, bad)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_500_damaged_files_are_refused_or_read(tmp_path: Path, name: str) -> None:
    model(tmp_path, CHATML + LOOPS)
    if name == "chat_template.jinja":
        (tmp_path / name).write_text(CHATML + LOOPS)
    data, rng = (tmp_path / name).read_bytes(), random.Random(6)
    refused = 0
    for _ in range(500):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        (tmp_path / name).write_bytes(changed)
        try:
            ChatTemplate.open(tmp_path).render(TALK, {})
            sentence = ""
        except (SystolithError, ApiError) as error:
            refused += 1
            sentence = str(error)
        assert "\n" not in sentence
    assert 100 < refused < 500
