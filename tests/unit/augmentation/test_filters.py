"""Filters of synthetic reviews: every kind of artefact is refused by the rule that is named for it."""

from __future__ import annotations

import pandas as pd
import pytest

from reviewclf.augmentation import passes_keyword_check, passes_llm_check
from reviewclf.augmentation.diversity import diversity, too_alike
from reviewclf.augmentation.filters import DraftFilter, count_reasons
from reviewclf.augmentation.prompts import load_writing_prompts, told_words
from reviewclf.settings import AugmentationSettings, load_settings
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import clean_text, text_hash

TAXONOMY = Taxonomy.load(load_settings(_env_file=None).taxonomy)
CATEGORY = "украшения и аксессуары"
JEWELLERY = next(item for item in TAXONOMY.categories if item.name == CATEGORY)
OPTIONS = AugmentationSettings()

REAL = [
    ("t1", "Браслет с подковой, замочек слабый, подруга уже потеряла", CATEGORY, "train"),
    ("t2", "Платье село отлично, ткань приятная", "одежда", "train"),
    ("v1", "Зонт трость огромный, втроём под ним помещались на даче", CATEGORY, "validation"),
    ("g1", "Кошелёк лаковый, уголки облезли, а монетница просторная", CATEGORY, "test"),
]


def real(rows: list[tuple[str, str, str, str]] = REAL) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["review_id", "text_clean", "label", "split"])
    return frame.assign(text_hash=frame["text_clean"].map(text_hash))


def make_filter(options: AugmentationSettings = OPTIONS, rows: list[tuple[str, str, str, str]] = REAL) -> DraftFilter:
    told = told_words(load_writing_prompts(), JEWELLERY)
    return DraftFilter(CATEGORY, TAXONOMY, real(rows), told=told, options=options)


def reasons(texts: list[str], filters: DraftFilter | None = None) -> list[str | None]:
    verdicts = (filters or make_filter()).judge(
        texts, [clean_text(text) for text in texts], [f"s{n}" for n in range(len(texts))]
    )
    return [None if verdict is None else verdict.reason for verdict in verdicts]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("1. Серьги очень понравились, ношу не снимая", "numbering"),
        ("2) Кольцо красивое, но маломерит", "numbering"),
        ("- Сумка вместительная и удобная", "numbering"),
        ("№4 Очки пришли без чехла", "numbering"),
        ("Отзыв 7: шарф тёплый и мягкий", "heading"),
        ("**Отзыв №12.** Цепочка потемнела через неделю", "heading"),
        ("Оценка: 5/5. Серьги шикарные", "heading"),
        ("«Серьги лёгкие, замок надёжный.»", "quotes"),
        ('"Кулон милый, цепочка тонкая"', "quotes"),
        ('"Подвеска красивая, но без коробки', "quotes"),
        ("Конечно! Вот отзывы о серьгах и кольцах", "assistant_prefix"),
        ("Вот несколько разных отзывов: серьги отличные", "assistant_prefix"),
        ("Ассистент: кольцо пришло вовремя", "assistant_prefix"),
        ("Как языковая модель, я не ношу серьги", "assistant_prefix"),
        ("Here are the reviews: серьги хорошие", "assistant_prefix"),
        ("Надеюсь, эти отзывы помогут! Серьги на любой вкус", "assistant_prefix"),
        ("Отзывы не должны начинаться одинаково. Серьги хорошие", "prompt_echo"),
        ("Купила в разделе украшения и аксессуары браслет", "prompt_echo"),
        ("Ответь только номером категории: серьги", "prompt_echo"),
        ("[Название товара] и серьги к нему блестят", "placeholder"),
        ('{"reviews": ["Серьги хорошие"]}', "json_remains"),
        ('Серьги красивые", "Кольцо не подошло"]', "json_remains"),
        ("<|im_end|> Кольцо хорошее, камень блестит", "service_tokens"),
        ("Серьги 很漂亮 очень красивые", "other_script"),
        ("Браслет 팔찌 хороший, ношу каждый день", "other_script"),
        ("👍👍👍", "empty"),
        ("Серьги ок", "too_short"),
        ("Серьги " + "блестят на солнце и в тени, " * 40, "too_long"),
        ("The ring is very beautiful and fits me well", "not_russian"),
        ("Браслет очень очень очень очень красивый", "repeated_words"),
        ("Браслет с подковой, замочек слабый, подруга его уже потеряла", "near_duplicate_of_real"),
        ("Зонт трость огромный, втроём под ним помещались у нас на даче", "near_duplicate_of_validation"),
        ("Кошелек лаковый, уголки облезли а монетница просторная!", "near_duplicate_of_gold"),
        ("Монетница просторная, кошелёк лаковый, а уголки облезли", "near_duplicate_of_gold"),
        ("Всё понравилось, доставили быстро, спасибо", "keyword_check"),
        ("Наушники с кабелем и зарядкой, похожи на серьги", "keyword_check"),
    ],
)
def test_artefact_is_refused_by_the_rule_named_for_it(text: str, rule: str) -> None:
    assert reasons([text]) == [rule]


@pytest.mark.parametrize(
    "text",
    [
        "Отзыв пишу спустя месяц, серьги не потемнели",
        "2 раза заказывала кольца, всё хорошо",
        "1.5 см кольцо великовато, а так доволен",
        "Серьги «гвоздики» понравились маме",
        "Конечно, за такие деньги серьги неплохие",
        "Вот серьги так серьги, глаз не оторвать",
        "Хорошо, что взяла сумку на размер больше",
        "Часы Casio показывают время, больше ничего не надо",
        "очки класс!!! (подруге тоже заказала)",
    ],
)
def test_what_people_write_passes(text: str) -> None:
    assert reasons([text]) == [None]


def test_candidates_repeat_neither_each_other_nor_those_of_an_earlier_batch() -> None:
    filters = make_filter()
    text = "Серьги-гвоздики взяла на каждый день, сплю в них, не колют"
    assert reasons([text, "Кулон с буквой пришёл с другой буквой"], filters) == [None, None]
    assert reasons([text.upper() + "!!!", "Брошь на пальто держится крепко"], filters) == ["near_duplicate_of_candidate", None]


def test_twin_of_a_refused_candidate_may_stay() -> None:
    first = "1. Брошь-стрекоза на пальто, булавка держит, эмаль без сколов"
    assert reasons([first, first[3:]]) == ["numbering", None]


def test_more_than_three_with_one_opening_are_refused() -> None:
    texts = [
        f"Купила серьги {rest}" for rest in ("маме", "на море в отпуск", "вместо потерянных летом", "с жемчужинами и фианитами")
    ]
    assert reasons(texts) == [None, None, None, "same_opening"]


def test_gold_text_is_not_repeated_in_what_the_rule_found() -> None:
    text = "Кошелек лаковый, уголки облезли, а монетница просторная"
    (verdict,) = make_filter().judge([text], [text], ["s0"])
    assert verdict is not None
    assert verdict.detail == "g1"


def test_letters_of_real_reviews_are_no_foreign_script_and_other_languages_need_not_be_russian() -> None:
    rows = [("t1", "Τα σκουλαρίκια είναι όμορφα", CATEGORY, "train")]
    assert reasons(["Τα βραχιόλια σε σερг серьги"], make_filter(rows=rows)) == [None]


def test_keyword_check_asks_for_the_class_before_all_others() -> None:
    assert passes_keyword_check("Серьги и кольцо", CATEGORY, TAXONOMY)
    assert passes_keyword_check("Серьги к платью", CATEGORY, TAXONOMY)
    assert not passes_keyword_check("Платье с рукавом и серьги", CATEGORY, TAXONOMY)
    assert not passes_keyword_check("Всё хорошо", CATEGORY, TAXONOMY)
    assert passes_keyword_check("Всё хорошо", "нет товара", TAXONOMY)
    assert not passes_keyword_check("Серьги", "нет товара", TAXONOMY)


@pytest.mark.parametrize(
    ("labels", "passes"),
    [
        ([], False),
        ([None], False),
        ([CATEGORY], True),
        ([CATEGORY, "обувь"], False),
        ([CATEGORY, CATEGORY, "обувь"], True),
        ([CATEGORY, None, None], False),
    ],
)
def test_llm_check_asks_for_a_share_of_all_votes(labels: list[str | None], passes: bool) -> None:
    assert passes_llm_check(labels, CATEGORY, min_share=0.6) is passes


def test_monotonous_set_is_thinned_until_it_is_as_varied_as_real_reviews() -> None:
    things = ["серьги", "кольцо", "зонт", "сумка", "шарф", "ремень", "часы", "брошь", "кулон", "платок"]
    ends = ["порвался в метро", "пахнет рыбой до сих пор", "нравится подруге больше чем мне", "выцвел на солнце", "потеряла"]
    varied = [f"{thing} {end}" for thing, end in zip(things, ends * 2, strict=True)]
    dull = [f"очень красивое украшение, спасибо, всем советую брать {thing}" for thing in things]
    assert diversity(varied, varied).ratio == pytest.approx(1.0)
    assert diversity(dull, varied).ratio < 0.6
    assert too_alike(varied, varied, min_ratio=0.8) == []
    out = too_alike([*varied, *dull], varied, min_ratio=0.8)
    assert out
    assert set(out) <= set(range(10, 20))


def test_few_texts_are_not_compared() -> None:
    assert diversity(["серьги"], ["кольцо"]).n == 0
    assert too_alike(["серьги"] * 4, ["кольцо"] * 9, min_ratio=1.0) == []


def test_every_rule_is_counted_even_when_it_refused_nothing() -> None:
    counts = count_reasons(make_filter().rules, ["numbering", "numbering", "unreadable_answer"])
    assert counts["numbering"] == 2
    assert counts["llm_check"] == 0
    assert list(counts)[-1] == "unreadable_answer"
