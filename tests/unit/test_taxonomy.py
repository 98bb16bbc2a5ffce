"""The taxonomy: nine categories by default, anybody's own by a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from reviewclf.errors import TaxonomyError
from reviewclf.labeling import keyword_label
from reviewclf.settings import load_settings
from reviewclf.taxonomy import StemMatcher, Taxonomy, match_name


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return Taxonomy.load(load_settings(_env_file=None).taxonomy)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "taxonomy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_default_taxonomy_has_the_nine_categories(taxonomy: Taxonomy) -> None:
    assert taxonomy.names == [
        "бытовая техника", "обувь", "одежда", "посуда", "текстиль", "товары для детей", "украшения и аксессуары",
        "электроника", "нет товара",
    ]  # fmt: skip
    assert [category.name for category in taxonomy.categories if category.no_product] == ["нет товара"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Платье село отлично, ткань плотная", "одежда"),
        ("СКОВОРОДА не пригорает", "посуда"),
        ("пылесосом довольна", "бытовая техника"),
        ("Тёплый плед, очень мягкий", "текстиль"),
        ("чехол на телефоне сидит плотно", "электроника"),
        ("умные часы держат заряд неделю", "электроника"),
        ("часы стильные", "украшения и аксессуары"),
        ("подошва отклеилась", "обувь"),
        ("ребёнок доволен игрушкой", "товары для детей"),
    ],
)
def test_stems_at_word_starts_tell_the_category(taxonomy: Taxonomy, text: str, label: str) -> None:
    assert keyword_label(text, taxonomy) == label


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Всё понравилось, спасибо продавцу",
        "Деньги вернули после спора",
        "платье и сковорода пришли вместе",
        "за платежом следили, заплатили лишнее",
        "переплатила, но довольна",
    ],
)
def test_no_stem_or_a_contradiction_is_no_label(taxonomy: Taxonomy, text: str) -> None:
    assert keyword_label(text, taxonomy) is None


def test_stem_inside_a_word_does_not_count() -> None:
    matcher = StemMatcher({"обувь": ["кед"]})
    assert matcher.counts("македы и покедова") == {}
    assert matcher.counts("кеды, Кедами; «кед»") == {"обувь": 3}


def test_longest_match_at_a_place_wins_and_is_not_matched_again() -> None:
    matcher = StemMatcher({"a": ["умн час"], "b": ["часы"]})
    assert matcher.counts("умные часы") == {"a": 1}
    assert matcher.counts("часы умные") == {"b": 1}


def test_whole_word_stem_does_not_match_a_longer_word() -> None:
    matcher = StemMatcher({"посуда": ["=нож"]})
    assert matcher.counts("нож и ножницы") == {"посуда": 1}


def test_stem_of_two_categories_counts_for_both() -> None:
    assert StemMatcher({"a": ["чайник"], "b": ["чайник"]}).counts("чайники") == {"a": 1, "b": 1}


def test_other_classes_in_another_language_need_nothing_but_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "categories:\n"
        "  - {id: 0, name: books, description: things to read, keywords: [book, novel]}\n"
        "  - {id: 1, name: other, description: the rest, no_product: true}\n",
    )
    own = Taxonomy.load(path)
    assert keyword_label("Two novels arrived", own) == "books"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("categories: []", "categories"),
        ("[]", "file: Input should be a valid dictionary"),
        ("categories: [{id: 0, name: a, description: x}, {id: 0, name: b, description: x}]", "ids must be 0, 1, 2"),
        ("categories: [{id: 0, name: a, description: x}, {id: 1, name: a, description: x}]", r"repeat.*'a'"),
        ("categories: [{id: 0, name: a}, {id: 1, name: b, description: x}]", r"categories\.0\.description"),
        ("categories: [{id: 0, name: a, description: x, keyword: [q]}, {id: 1, name: b, description: x}]", "keyword"),
        ("categories: [", "no UTF-8 YAML"),
    ],
)
def test_unusable_file_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(TaxonomyError, match=message) as error:
        Taxonomy.load(path)
    assert str(path) in str(error.value)


def test_missing_file_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match="REVIEWCLF_TAXONOMY"):
        Taxonomy.load(tmp_path / "none.yaml")


def test_keyword_without_letters_is_refused() -> None:
    with pytest.raises(TaxonomyError, match="no letter"):
        StemMatcher({"a": ["--"]})


@pytest.mark.parametrize(
    "written",
    [
        "Товары для детей",
        "ТОВАРЫ  ДЛЯ\u00a0ДЕТЕЙ",
        "\ufeffтовары для\tдетей ",
        "товары для детеи\u0306",
        "товары для де\u00adтей",
    ],
)
def test_names_are_matched_whatever_their_case_and_spaces(taxonomy: Taxonomy, written: str) -> None:
    assert match_name(written, taxonomy.names) == "товары для детей"


@pytest.mark.parametrize("written", ["товары", "товарыдлядетей", "", None, float("nan"), 3])
def test_what_is_no_name_matches_none(taxonomy: Taxonomy, written: object) -> None:
    assert match_name(written, taxonomy.names) is None


def test_of_names_that_differ_in_case_alone_only_the_exact_one_matches() -> None:
    assert match_name("Mac", ["Mac", "MAC"]) == "Mac"
    assert match_name("mac", ["Mac", "MAC"]) is None
