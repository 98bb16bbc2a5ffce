from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf.data.dataset import build_dataset
from reviewclf.data.duplicates import match_near_duplicates, near_duplicate_groups
from reviewclf.data.gold import check_gold
from reviewclf.data.leaks import check_leaks
from reviewclf.errors import LeakError
from reviewclf.settings import DatasetSettings
from reviewclf.text import clean_text, comparison_form, normal_form, text_hash

GOLD = "Платье село хорошо, ткань приятная, носить можно с ремнём"
LATIN = str.maketrans("АВСЕНКМОРТХасеорху", "ABCEHKMOPTXaceopxy")

COPIES = {
    "Latin look-alikes": GOLD.translate(LATIN),
    "Latin look-alikes in capitals": GOLD.upper().translate(LATIN),
    "Greek look-alikes": GOLD.translate(str.maketrans("аеоркхт", "αεορκχτ")),
    "letters with spaces between": " ".join(GOLD),
    "letters with spaces, words further apart": "   ".join(" ".join(word) for word in GOLD.split()),
    "letters with full stops between": ".".join(GOLD),
    "some words spaced out": GOLD.replace("Платье", "П л а т ь е").replace("приятная", "п р и я т н а я"),
    "no spaces": GOLD.replace(" ", ""),
    "digits for letters": GOLD.replace("но", "н0").replace("хо", "х0"),
    "invisible characters": "\u200b".join(GOLD),
    "soft hyphens": "\u00ad".join(GOLD),
    "accents": GOLD.replace("а", "а\u0301").replace("о", "о\u0336"),
    "accented Latin letters": GOLD.replace("а", "á").replace("о", "ö"),
    "full-width punctuation": GOLD.replace(",", "，！"),
    "doubled punctuation": GOLD.replace(",", ",,,!!!"),
    "mixed case without ё": "".join(c.upper() if i % 2 else c for i, c in enumerate(GOLD)).replace("ё", "е").replace("Ё", "Е"),
    "small capitals": GOLD.replace("к", "ᴋ").replace("т", "ᴛ").replace("о", "ᴏ"),
}


def rows(*texts: str) -> pd.DataFrame:
    """Labelled reviews of two classes, and `texts` among them."""
    ordinary = [
        *(
            "Сапоги протекли после дождя",
            "Кеды белые, быстро пачкаются",
            "Тапочки пушистые, мама рада",
            "Ботинки тяжёлые, но тёплые",
        ),
        *(
            "Свитер колючий и в катышках",
            "Юбка короче, чем на фото",
            "Джинсы большемерят в талии",
            "Пуховик продувает насквозь",
        ),
    ]
    frame = pd.DataFrame({"text_clean": [*ordinary, *(clean_text(text) for text in texts)]})
    return frame.assign(
        review_id=[f"r{number}" for number in range(len(frame))],
        text_hash=[text_hash(text) for text in frame["text_clean"]],
        label=["обувь"] * 4 + ["одежда"] * (4 + len(texts)),
        confidence=0.9,
        origin="llm",
        method="posterior",
        hint=False,
    )


@pytest.mark.case(57)
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_gold_review_in_another_spelling_is_left_out(copy: str) -> None:
    gold, _ = check_gold(pd.DataFrame({"text": [GOLD], "label": ["одежда"]}), ["обувь", "одежда"])
    dataset, left_out = build_dataset(rows(copy), gold, DatasetSettings(), min_confidence=0.5, seed=1)
    assert left_out["review_id"].tolist() == ["r8"]
    assert (dataset["split"] == "test").sum() == 1


@pytest.mark.case(57)
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_leak_check_sees_a_gold_review_in_another_spelling(copy: str) -> None:
    frame = pd.DataFrame(
        {
            "review_id": ["g", "r"],
            "text_clean": [GOLD, copy],
            "origin": ["human", "llm"],
            "group": ["a", "b"],
            "split": ["test", "train"],
        }
    )
    with pytest.raises(LeakError, match="r ~ g"):
        check_leaks(frame, similarity=0.7)


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_other_spellings_are_one_group(copy: str) -> None:
    assert len(set(near_duplicate_groups([GOLD, "Сапоги протекли", copy, clean_text(copy)]))) == 2


def test_what_only_looks_alike_in_part_is_another_review() -> None:
    texts = ["Платье село хорошо", "Пальто село плохо", "3 раза стирала", "8 раз стирала", "размер M", "размер L"]
    assert len(set(near_duplicate_groups(texts))) == len(texts)
    assert match_near_duplicates(["Размер 30"], ["Размер 3о 0"]) == [None]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Cпасибо, плaтьe cело", "Спасибо, платье село"),
        ("Аdidas и Panasoniс", "Adidas и Panasonic"),
        ("размер ХL, 2хl", "размер XL, 2xl"),
        ("сSamsung", "сSamsung"),
        ("SMSка, XL-ка, TV, H&M, Wi-Fi", "SMSка, XL-ка, TV, H&M, Wi-Fi"),
        ("Платье S, C, M", "Платье S, C, M"),
        ("Сукенка і спідниця", "Сукенка і спідниця"),
    ],
)
def test_words_of_mixed_alphabets_are_put_right(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


def test_look_alikes_do_not_change_the_hash_of_a_cleaned_review() -> None:
    assert text_hash(clean_text("Плaтьe сeлo xoрoшo")) == text_hash("Платье село хорошо")


def test_in_real_reviews_few_words_mix_alphabets(shared_data: Path) -> None:
    texts = []
    for name in ("reviews.csv", "later_reviews.csv", "multi/reviews.csv"):
        with (shared_data / name).open(encoding="utf-8", newline="") as file:
            texts += [row["text"] for row in csv.DictReader(file)]
    russian = [text for text in texts if not any(char.isascii() and char.isalpha() for char in text)]
    assert len(russian) > 12_000
    changed = [text for text in russian if comparison_form(text).replace(" ", "") != normal_form(text).replace(" ", "")]
    assert len(changed) < 20


PIECES = st.sampled_from(
    [*"абвоехABCEHoaepcxy 03і.", "Платье", "платье", "XL", "η", "α", "ᴋ", "\u0301", "й", "é", "п л а т ь е"]
)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=12).map("".join)))
def test_folding_is_idempotent(text: str) -> None:
    form = comparison_form(text)
    assert comparison_form(form) == form
    assert clean_text(clean_text(text)) == clean_text(text)
