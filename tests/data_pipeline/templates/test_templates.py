"""Templates render what they export, and nothing that a message says can open or end a turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_pipeline.config import ConfigError
from data_pipeline.templates import Message, Template, TemplateError, load_template, template_names
from tests.data_pipeline.shards.folders import write_tokenizer

NAMES = ("alpaca", "alpaca_ko", "chatml", "koalpaca")
# As Llama 3 and Qwen write them: a BOS, headers, texts trimmed, a newline behind the end of a turn.
HEADERS = (
    "{{- bos_token }}{% for message in messages %}\n"
    "    {{- '<|reserved_1|>' + message['role'] + '<|reserved_2|>\\n\\n' + message['content'] | trim + eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}{{- '<|reserved_1|>assistant<|reserved_2|>\\n\\n' }}{% endif %}"
)
NEWLINES = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n도우미<|im_end|>\\n' }}{% endif %}"
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
    "{{- '\\n' }}{% else %}{{ message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

texts = st.text(max_size=30).filter(lambda text: "\ue8a1" not in text and "\ue8a2" not in text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder without a chat template; its BOS is not its EOS."""
    found = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")
    settings = json.loads((found / "tokenizer_config.json").read_text())
    (found / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|reserved_0|>"}))
    return found


@pytest.fixture(scope="module")
def oracle(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


def template_file(folder: Path, text: str, suffix: str = ".yaml") -> str:
    path = folder / f"mine{suffix}"
    path.write_text(text, encoding="utf-8")
    return str(path)


@st.composite
def conversations(draw: st.DrawFn, *, with_input: bool = True) -> list[dict[str, str]]:
    """Up to three turns, with and without a system turn and inputs."""
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        given_input = draw(st.one_of(st.just(""), texts)) if with_input else ""
        messages.append({"role": "user", "content": draw(texts), "input": given_input})
        messages.append({"role": "assistant", "content": draw(texts), "input": ""})
    return messages


def assert_equal_to_transformers(template: Template, oracle: Any, messages: list[dict[str, str]]) -> None:
    jinja = template.chat_template()
    whole = oracle.apply_chat_template(messages, chat_template=jinja, tokenize=False)
    rendered = template.text(template.render(messages))
    # What a chat template writes behind the last EOS teaches nothing, and a row ends with its EOS.
    assert whole.startswith(rendered)
    assert whole[len(rendered) :].strip() == ""
    asked = oracle.apply_chat_template(messages[:-1], chat_template=jinja, tokenize=False, add_generation_prompt=True)
    assert template.prompt(messages[:-1]) == asked


@pytest.mark.parametrize("name", NAMES)
@given(messages=conversations())
def test_our_rendering_is_that_of_the_exported_jinja(
    folder: Path, oracle: PreTrainedTokenizerFast, name: str, messages: list[dict[str, str]]
) -> None:
    template = load_template(name, tokenizer=folder)

    assert_equal_to_transformers(template, oracle, messages)
    assert template.text(template.render(messages)) == oracle.apply_chat_template(
        messages, chat_template=template.chat_template(), tokenize=False
    )


@pytest.mark.parametrize("jinja", [HEADERS, NEWLINES], ids=["headers", "newlines"])
@given(messages=conversations(with_input=False))
def test_our_rendering_is_that_of_the_tokenizers_own_template(
    tmp_path_factory: pytest.TempPathFactory,
    folder: Path,
    oracle: PreTrainedTokenizerFast,
    jinja: str,
    messages: list[dict[str, str]],
) -> None:
    path = template_file(tmp_path_factory.mktemp("jinja"), jinja, ".jinja")

    assert_equal_to_transformers(load_template(path, tokenizer=folder), oracle, messages)


@pytest.mark.parametrize("name", [*NAMES, "headers"])
@given(messages=conversations(with_input=False))
def test_a_prompts_pieces_are_the_first_of_its_row_and_an_answer_comes_back_from_its_piece(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, name: str, messages: list[dict[str, str]]
) -> None:
    is_own = name != "headers"
    path = name if is_own else template_file(tmp_path_factory.mktemp("jinja"), HEADERS, ".jinja")
    template = load_template(path, tokenizer=folder)

    pieces, prompt = template.render(messages), template.prompt_pieces(messages[:-1])

    assert pieces[: len(prompt)] == prompt
    (answer,) = pieces[len(prompt) :]
    assert answer.is_answer and answer.ends
    content = messages[-1]["content"] if is_own else messages[-1]["content"].strip()
    assert template.answer_text(answer.text) == content
    assert template.answer_text(answer.text + template.eos_token) == content
    assert [piece.is_answer for piece in pieces] == [False, True] * (len(pieces) // 2)


def test_koalpaca_is_written_as_koalpaca_writes_it(folder: Path) -> None:
    template = load_template("koalpaca", tokenizer=folder)
    question: Message = {"role": "user", "content": "수도는?", "input": "대한민국"}

    assert template.prompt([question]) == "### 질문: 수도는?\n\n### 맥락: 대한민국\n\n### 답변:"
    rendered = template.text(template.render([{**question, "input": ""}, {"role": "assistant", "content": "서울"}]))
    assert rendered == "### 질문: 수도는?\n\n### 답변: 서울<|endoftext|>"


def test_alpaca_begins_otherwise_with_an_input_and_leaves_its_first_lines_to_a_system_turn(folder: Path) -> None:
    template = load_template("alpaca", tokenizer=folder)
    question: Message = {"role": "user", "content": "Add."}

    with_input = template.prompt([{**question, "input": "1 2"}])
    assert "paired with an input" in with_input and "### Input:\n1 2\n\n### Response:" in with_input
    assert "paired with an input" not in template.prompt([question])
    assert template.prompt([{"role": "system", "content": "Be brief."}, question]).startswith("Be brief.\n\n### Inst")


def test_a_closing_marker_that_is_the_eos_is_written_once(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t")
    config = {"eos_token": "<|reserved_0|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    closing = 'name: mine\nuser: "{content}\\n"\nanswer_prefix: "A:"\nanswer: "{content}<|reserved_0|>"\n'
    template = load_template(template_file(tmp_path, closing), tokenizer=folder)
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]

    assert template.text(template.render(messages)) == "Q\nA:A<|reserved_0|>"
    oracle = PreTrainedTokenizerFast.from_pretrained(folder)
    assert oracle.apply_chat_template(messages, chat_template=template.chat_template(), tokenize=False) == (
        "Q\nA:A<|reserved_0|>"
    )


def test_bos_stands_once_where_the_template_says_so(folder: Path, oracle: PreTrainedTokenizerFast) -> None:
    text = 'name: m\nbos: true\nuser: "{content}\\n"\nanswer_prefix: "A:"\nanswer: "{content}"\n'
    template = load_template(template_file(folder, text), tokenizer=folder)
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]

    assert template.text(template.render(messages)).count("<|reserved_0|>") == 1
    assert_equal_to_transformers(template, oracle, messages)


@pytest.mark.parametrize("name", NAMES)
def test_a_template_written_beside_the_shards_is_the_same_one(folder: Path, tmp_path: Path, name: str) -> None:
    template = load_template(name, tokenizer=folder)
    again = load_template(template_file(tmp_path, template.to_yaml()), tokenizer=folder)

    assert (again.name, again.sha256, again.chat_template()) == (name, template.sha256, template.chat_template())


@pytest.mark.parametrize("jinja", [HEADERS, NEWLINES])
def test_a_tokenizers_template_written_beside_the_shards_is_the_same_one(tmp_path: Path, jinja: str) -> None:
    folder = write_tokenizer(tmp_path / "t")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": "<|reserved_0|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": jinja}))
    in_settings = load_template("tokenizer", tokenizer=folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(jinja)

    in_file = load_template("tokenizer", tokenizer=folder)
    again = load_template(template_file(tmp_path, in_file.to_yaml()), tokenizer=folder)

    assert in_settings.sha256 == in_file.sha256 == again.sha256
    assert again.chat_template() == jinja


def test_hashes_tell_apart_what_renders_differently_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    def sha256(text: str) -> str:
        return load_template(template_file(tmp_path, text), tokenizer=folder).sha256

    one = sha256('name: a\nuser: "Q {content}\\n"\nanswer: "{content}"\n')
    assert one == sha256('# note\nanswer: "{content}"\nuser: "Q {content}\\n"\nname: b\nabout: words\n')
    assert one != sha256('name: a\nuser: "Q {content}\\n"\nanswer: " {content}"\n')
    assert len({load_template(name, tokenizer=folder).sha256 for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: a\nuser: "Q {content}"\n', "answer: missing: a template without an answer part has nothing to learn"),
        (
            'name: a\nuser: "Q {content}"\nanswer: "A"\n',
            r"answer: holds \{content\} 0 times, got 'A'; write it once",
        ),
        ('name: a\nuser: "Q"\nanswer: "{content}"\n', r"user: holds \{content\} 0 times, got 'Q'"),
        (
            'name: a\nuser: "{content}{content}"\nanswer: "{content}"\n',
            r"user: holds \{content\} 2 times",
        ),
        (
            'name: a\nuser: "Q {content}"\nuser_with_input: "Q {content}"\nanswer: "{content}"\n',
            r"user_with_input: holds \{input\} 0 times",
        ),
        ('name: a\nuser: "{content}"\nanswer: "{content}"\n', "nothing tells a question from its answer"),
        (
            'name: a\nuser: "Q {content}"\nanswer: "{content}"\nsytem: "x"\n',
            "sytem: unknown key; did you mean 'system'",
        ),
        ('name: a\njinja: ""\n', "jinja: string should have at least 1 character"),
    ],
)
def test_a_faulty_file_is_refused_with_one_message(folder: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_template(template_file(tmp_path, text), tokenizer=folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        (
            "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}",
            r"it renders no answer \(답변이 없는 템플릿\)",
        ),
        (
            "{% for message in messages %}{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            r"its answers end with .*<\|im_end\|>.*, not with the tokenizer's EOS '<\|endoftext\|>'",
        ),
        (
            "{{ messages | length }}{% for message in messages %}{{ message.content + eos_token }}{% endfor %}",
            "a turn changes what was written before it",
        ),
        (
            "{% for message in messages %}{{ message.content | upper }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}ABC{% endif %}",
            None,
        ),
        ("{% for message in messages %}", "line 1: .*; mend the Jinja text"),
        ("{{ raise_exception('only one turn') }}", "it refuses these messages: only one turn"),
    ],
)
def test_a_chat_template_that_cant_be_followed_is_refused(
    folder: Path, tmp_path: Path, jinja: str, message: str | None
) -> None:
    path = template_file(tmp_path, jinja, ".jinja")
    messages = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "def"}]

    with pytest.raises(TemplateError, match=message or "changes"):
        load_template(path, tokenizer=folder).render(messages)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([], "the roles are none"),
        (["assistant"], "the roles are assistant"),
        (["user", "user", "assistant"], "the roles are user, user, assistant; needed are"),
        (["user", "system", "assistant"], "the roles are user, system, assistant"),
        (["user"], "the last one assistant"),
        (["system"], "the roles are system"),
    ],
)
@pytest.mark.parametrize("name", ["koalpaca", "headers"])
def test_turns_in_another_order_are_refused(
    folder: Path, tmp_path: Path, name: str, roles: list[str], message: str
) -> None:
    path = name if name != "headers" else template_file(tmp_path, HEADERS, ".jinja")
    template = load_template(path, tokenizer=folder)

    with pytest.raises(TemplateError, match=message):
        template.render([{"role": role, "content": "x"} for role in roles])


def test_a_prompt_that_ends_with_an_answer_and_a_text_that_is_none_are_refused(folder: Path) -> None:
    template = load_template("koalpaca", tokenizer=folder)

    with pytest.raises(TemplateError, match="the last one user"):
        template.prompt([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
    with pytest.raises(TemplateError, match="content of message 0 is a NoneType; text is needed"):
        template.prompt([{"role": "user", "content": None}])  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "no place for a system turn"),
        ([{"role": "user", "content": "q", "input": "i"}], "no place for an input"),
    ],
)
def test_what_a_template_has_no_place_for_is_refused_here_and_in_jinja(
    folder: Path, tmp_path: Path, oracle: PreTrainedTokenizerFast, messages: list[dict[str, str]], message: str
) -> None:
    bare = template_file(tmp_path, 'name: bare\nuser: "Q {content}\\n"\nanswer: "{content}"\n')
    template = load_template(bare, tokenizer=folder)

    with pytest.raises(TemplateError, match=message):
        template.prompt(messages)
    with pytest.raises(Exception, match=message):
        oracle.apply_chat_template(messages, chat_template=template.chat_template(), tokenize=False)


def test_names_that_are_none_are_told_what_there_is(folder: Path, tmp_path: Path) -> None:
    assert template_names() == [*NAMES, "tokenizer"]
    with pytest.raises(TemplateError, match=r"'kolpaca' is neither .*alpaca_ko, chatml.*; did you mean 'koalpaca'\?"):
        load_template("kolpaca", tokenizer=folder)
    with pytest.raises(TemplateError, match="has no chat template of its own; choose one of alpaca, alpaca_ko, chatml"):
        load_template("tokenizer", tokenizer=folder)
    no_bos = write_tokenizer(tmp_path / "t")
    with pytest.raises(TemplateError, match="bos is true, but the tokenizer has no bos_token"):
        load_template(
            template_file(tmp_path, 'name: m\nbos: true\nuser: "Q {content}"\nanswer: "{content}"\n'), tokenizer=no_bos
        )
    (no_bos / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TemplateError, match="no eos_token in tokenizer_config.json; name one"):
        load_template("koalpaca", tokenizer=no_bos)


def test_a_text_with_the_marks_that_a_chat_template_is_followed_by_is_refused(folder: Path, tmp_path: Path) -> None:
    template = load_template(template_file(tmp_path, HEADERS, ".jinja"), tokenizer=folder)

    with pytest.raises(TemplateError, match=r"holds the private-use character U\+E8A1 or U\+E8A2"):
        template.prompt([{"role": "user", "content": "\ue8a10\ue8a2"}])
