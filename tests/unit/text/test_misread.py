from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf.text import clean_text, is_misread, repaired

ENCODINGS = ("cp1251", "cp1252", "latin-1", "koi8-r", "cp866", "mac-cyrillic", "mac-roman")

HEALTHY = [
    "Платье село отлично, размер 42-44! Спасибо — «супер» №1…",
    "И шапка, и шарф. Эх, Р и С!",
    "СІРІ ШТАНИ, РІК НОСИВ. Плаття гарне, їжа є",
    "Көйлек өте жақсы, әдемі, ұсынамын, үлкен рахмет",
    "Сукенка прыгожая, ўсё ў парадку",
    "Љубав, ћевапи, џемпер",
    "ESPAÑA, Ñandú, très bien, déjà vu, naïveté, Größe ÄÖÜß, façade, Tiếng Việt",
    "Don’t buy – “bad” quality… 5€",
    "К–Р–А–С–О–Т–А, –А–А–А–Я, 42–44, 46—48",
    "пЛАТЬЕ СуПеР, ПРёвет",
    "Супер 👍🏽❤️ 💯",
    "Что??? Как так??? Вы где???",
    "???",
    "│ таблица │ ░▒▓",
    "",
]


def read_as(text: str, encoding: str) -> str:
    """UTF-8 read in another encoding, as browsers do it: a byte without a character becomes a control character."""
    return "".join(bytes([byte]).decode(encoding, errors="ignore") or chr(byte) for byte in text.encode())


@pytest.fixture(scope="module")
def real_reviews(shared_data: Path) -> list[str]:
    texts = []
    for name in ("reviews.csv", "later_reviews.csv", "gold_reviews.csv", "multi/reviews.csv"):
        with (shared_data / name).open(encoding="utf-8", newline="") as file:
            texts += [row["text"] for row in csv.DictReader(file)]
    return texts


@pytest.mark.case(58)
def test_utf8_that_was_read_as_windows_1251_is_cleaned_as_what_was_written() -> None:
    assert clean_text("РџР»Р°С‚СЊРµ СЃРµР»Рѕ РѕС‚Р»РёС‡РЅРѕ") == "Платье село отлично"
    assert clean_text("Р”Р°") == "Да"
    assert clean_text("РљСЂСѓР¶РєР° РїСЂРёС€Р»Р° СЂР°Р·Р±РёС‚РѕР№") == "Кружка пришла разбитой"


@pytest.mark.parametrize("text", HEALTHY)
def test_healthy_text_is_not_touched(text: str) -> None:
    assert repaired(text) == text
    assert not is_misread(text)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("text", ["Платье село отлично — «супер» 👍", "Көйлек өте жақсы, әдемі", "И шапка, и шарф. Эх!", "Да"])
def test_text_read_in_the_wrong_encoding_is_read_again(text: str, encoding: str) -> None:
    assert repaired(read_as(text, encoding)) == text
    assert not is_misread(read_as(text, encoding))


@pytest.mark.parametrize("encoding", ["cp1251", "cp1252", "latin-1"])
def test_text_misread_twice_is_read_twice(encoding: str) -> None:
    text = "Игрушка сломалась на второй день, Эльвира расстроена"
    assert repaired(read_as(read_as(text, encoding), encoding)) == text


def test_windows_1251_that_was_read_as_latin_1_is_read_again() -> None:
    text = "Всё как на фото, платье «супер», размер XL"
    assert repaired(text.encode("cp1251").decode("cp1252")) == text


@pytest.mark.parametrize("lost", ["\ufffd", "?", "\x98"])
def test_a_byte_without_a_character_is_found_again(lost: str) -> None:
    text = "Игрушка хорошая. И цвет тоже"
    assert repaired(read_as(text, "cp1251").replace("\x98", lost)) == text


def test_no_break_spaces_that_became_plain_ones_are_letters_still() -> None:
    text = "Размер подошёл. Рукав короткий, НЕ РЕКОМЕНДУЮ"
    assert repaired(read_as(text, "cp1251").replace("\xa0", " ")) == text


def test_a_few_letters_that_are_lost_for_good_leave_holes() -> None:
    text = "Игрушка хорошая, но краска очень сильно пахнет"
    assert repaired(read_as(text, "cp1251").replace("\x98", "")) == "\ufffd" + text[1:]


def test_a_misread_part_of_a_healthy_text_is_read_again() -> None:
    assert repaired("С ума сойти. Ответ: РџР»Р°С‚СЊРµ СЃРµР»Рѕ") == "С ума сойти. Ответ: Платье село"
    assert repaired("Супер рџ‘Ќ, don’t buy") == "Супер 👍, don’t buy"


@pytest.mark.parametrize(
    "text",
    [
        "????? ???? ??????",
        "������ ���� �������",
        read_as("Њубав Љубав Ђурђевдан џак", "cp1251"),
        "ÐÐ»Ð°ÑÑÐµ ÑÐµÐ»Ð¾",
    ],
)
def test_what_cannot_be_read_again_is_told(text: str) -> None:
    assert is_misread(text)
    assert repaired(text) == text


def test_in_real_reviews_only_two_are_misread(real_reviews: list[str]) -> None:
    assert len(real_reviews) > 15_000
    assert [repaired(text) for text in real_reviews if repaired(text) != text] == [
        "меня не устроило качество товара",
        "Доставка долгая,а так всё отлично!",
    ]
    assert not any(map(is_misread, real_reviews))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_real_reviews_survive_being_misread(real_reviews: list[str], encoding: str) -> None:
    # A review of one letter leaves no evidence.
    texts = [repaired(text) for text in real_reviews[::10] if sum(map(str.isalpha, text)) > 3]
    lost = [text for text in texts if repaired(read_as(text, encoding)) != text]
    assert len(lost) <= 2


PIECES = st.sampled_from(
    [*"РСÐÑпя╨╤–—вЂрџâ€ðÂÃ ?.А", *HEALTHY[:4], *(read_as("Платье", name) for name in ENCODINGS), "\ufffd", "\x98", "\xa0"]
)


@settings(max_examples=1_500, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=15).map("".join)))
def test_repair_is_idempotent(text: str) -> None:
    assert repaired(repaired(text)) == repaired(text)
    assert is_misread(repaired(text)) == is_misread(text)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="абвгдежзийклмнопрстуфхцчшщъыьэюяё ,.!-—«»№0123456789XLАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЭЮЯ", max_size=60))
def test_no_russian_text_is_touched(text: str) -> None:
    assert repaired(text) == text
