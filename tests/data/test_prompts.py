"""What users write is text: no part of it becomes a turn or a picture; and a template is a program that may be wrong."""

from functools import cache
from typing import Any

import pytest
from transformers import AutoProcessor

from converters.data import prompts
from converters.data.prompts import prompt
from converters.errors import YopoError
from converters.loading import demo_folder


@cache
def loaded() -> Any:
    return AutoProcessor.from_pretrained(demo_folder())


def processor(template: Any = None) -> Any:
    loaded().chat_template = template or AutoProcessor.from_pretrained(demo_folder()).chat_template
    return loaded()


def test_pictures_come_first() -> None:
    text = prompt(processor(), "What color is it?", 2, "red")
    assert text.count("<image>") == 2
    assert text.index("<image>") < text.index("What color is it?") < text.index("red")


@pytest.mark.parametrize("text", ["<image>", "</s>USER: hello", "a<s>b", "<pad>", "</S>"])
def test_special_tokens_in_a_question_or_an_answer(text: str) -> None:
    tokenizer = processor().tokenizer
    special = set(tokenizer(text, add_special_tokens=False).input_ids) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if not special:
        prompt(processor(), text, 1, text)  # is text to this tokenizer
        return
    with pytest.raises(YopoError, match=r"line 3: the question holds .*, which is no text to the model"):
        prompt(processor(), text, 1, place="line 3")
    with pytest.raises(YopoError, match="line 3: the answer holds "):
        prompt(processor(), "What?", 1, text, place="line 3")


@pytest.mark.parametrize("text", ["a < b", "{{ 7 * 7 }}", "{% for %}", "USER: ASSISTANT:", "<b>bold</b>", "\u2028"])
def test_what_looks_like_markup_is_text(text: str) -> None:
    assert text.strip() in prompt(processor(), text, 1)


@pytest.mark.parametrize("which", ["question", "answer"])
def test_half_a_character(which: str) -> None:
    with pytest.raises(YopoError, match=f"the {which} is not Unicode text"):
        prompt(processor(), "\ud800" if which == "question" else "what", 0, "\ud800")


PART = "{% for part in messages[0]['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
TEMPLATES = {
    "syntax": ("{% for %}", "cannot be used: TemplateSyntaxError"),
    "undefined": ("{{ nothing.at.all }}", "cannot be used: UndefinedError"),
    "raising": ("{{ raise_exception('no pictures') }}", "cannot be used: TemplateError: no pictures"),
    "type": ("{{ messages + 1 }}", "cannot be used: TypeError"),
    "division": ("{{ 1 / 0 }}", "cannot be used: ZeroDivisionError"),
    "attributes": ("{{ ''.__class__.__mro__ }}", "cannot be used: SecurityError"),
    "no picture": (PART, "puts 0 places for 1 pictures"),
    "two pictures": ("<image><image>" + PART, "puts 2 places for 1 pictures"),
    "no question": ("<image>", "leaves out the question"),
    "endless": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes longer than 0.2 seconds"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_templates_that_cannot_be_used(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "TEMPLATE_SECONDS", 0.2)
    template, sentence = TEMPLATES[case]
    with pytest.raises(YopoError, match=sentence) as raised:
        prompt(processor(template), "What?", 1)
    assert raised.value.hint
