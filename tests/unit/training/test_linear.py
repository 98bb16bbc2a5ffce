"""Linear classifiers: what they learn, what they answer, how they are saved."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf.errors import RegistryError, TrainingError
from reviewclf.evaluation import evaluate, expected_calibration_error
from reviewclf.settings import load_settings
from reviewclf.taxonomy import Taxonomy
from reviewclf.training.candidates import Candidate, load_candidates
from reviewclf.training.linear import LinearCandidate
from reviewclf.training.model import TextClassifier, load_model
from reviewclf.training.rows import TrainingJob

SETTINGS = load_settings(_env_file=None)
TAXONOMY = Taxonomy.load(SETTINGS.taxonomy)
CLASSES, STEMS = TAXONOMY.names, TAXONOMY.keyword_stems
BUNDLED = {c.name: c for c in load_candidates(SETTINGS.candidates) if isinstance(c, LinearCandidate)}
NOTEBOOK_WORDS = {"ngram_range": (1, 2), "min_df": 2, "max_features": 30_000}

REVIEWS = {
    "одежда": [
        "Платье село отлично, ткань тонкая, рукава длинные",
        "кофта маломерит, взяла 46 а нужен 48, ткань колется",
        "Платье пришло мятое, подол кривой, но ткань хорошая",
        "Юбка короткая, на рост 170 не пойдёт, ткань просвечивает",
        "рубашка классная, швы ровные, рукава не короткие",
        "Куртка тёплая, капюшон большой, молния заедает",
        "Брюки велики в талии, ткань мнётся",
        "кофта в катышках после первой стирки, рукава растянулись",
        "платье как на фото, рост 164 село идеально",
        "Свитер колючий, горловина узкая, рукава длинные",
    ],
    "посуда": [
        "Сковорода не пригорает, ручка удобная, дно толстое",
        "кастрюля пришла с вмятиной, крышка не подходит",
        "Кружка красивая, но пришла с трещиной на ручке",
        "тарелки разбились по дороге, осталось две целых",
        "Сковорода лёгкая, дно ровное, крышка в комплекте",
        "Нож острый, режет мясо как масло",
        "термос держит тепло часов шесть, крышка течёт",
        "Кастрюля на 3 литра, дно толстое, варю борщ",
        "кружка маленькая, но рисунок яркий, мою в машинке",
        "Тарелки тонкие, но на стол поставить не стыдно",
    ],
    "нет товара": [
        "Доставка быстрая, продавец молодец",
        "деньги вернули после спора, продавец не отвечал",
        "Всё понравилось, качество отличное",
        "заказ не пришёл, трек не отслеживается",
        "Пришло быстро, упаковано хорошо, спасибо продавцу",
        "товар соответствует описанию",
        "шло два месяца, деньги вернули без вопросов",
        "Продавец обманул, спор открыт, жду деньги",
        "доставка в срок, рекомендую продавца",
        "Качество хорошее за свои деньги",
    ],
}
EMPTY = pd.DataFrame({"text_clean": [], "label": [], "weight": []})


def _rows(reviews: dict[str, list[str]], *, weight: float = 1.0) -> pd.DataFrame:
    rows = [(text, label, weight) for label, texts in reviews.items() for text in texts]
    return pd.DataFrame(rows, columns=["text_clean", "label", "weight"])


def _candidate(**params: Any) -> LinearCandidate:
    base: dict[str, Any] = {"estimator": "logistic_regression", "C": 10, "word": {"ngram_range": (1, 2)}, "calibration": "none"}
    return LinearCandidate.model_validate({"name": "trial", "kind": "linear", "params": {**base, **params}})


def _train(
    candidate: Candidate,
    train: pd.DataFrame | None = None,
    validation: pd.DataFrame = EMPTY,
    *,
    stems: dict[str, list[str]] = STEMS,
    seed: int = 0,
) -> TextClassifier:
    rows = _rows(REVIEWS) if train is None else train
    return candidate.train(TrainingJob(rows, validation, classes=CLASSES, stems=stems, seed=seed))


def _labels(classifier: Any, texts: list[str]) -> list[str]:
    return [classifier.classes[position] for position in classifier.predict_proba(texts).argmax(axis=1)]


@pytest.fixture(scope="module", params=list(BUNDLED))
def bundled(request: pytest.FixtureRequest) -> TextClassifier:
    return _train(BUNDLED[request.param])


# -- what they learn -------------------------------------------------------------------------------------------------


def test_bundled_candidates_tell_products_and_no_product_apart(bundled: TextClassifier) -> None:
    texts = ["Юбка села хорошо, ткань приятная", "Крышка от кастрюли треснула", "Продавец вернул деньги"]
    assert _labels(bundled, texts) == ["одежда", "посуда", "нет товара"]


def test_stems_know_products_that_no_training_review_names() -> None:
    texts = ["половник", "дуршлаг", "пижама", "носки", "Жакет", "бокалы"]
    expected = ["посуда", "посуда", "одежда", "одежда", "одежда", "посуда"]
    assert _labels(_train(_candidate(stem_weight=0.5)), texts) == expected
    assert _labels(_train(_candidate(stem_weight=0.0)), texts) != expected


def test_absence_of_all_stems_speaks_for_no_product() -> None:
    train = _rows({**REVIEWS, "бытовая техника": ["Утюг", "пылесос гудит", "Фен сгорел", "блендер", "миксер слабый"]})
    classifier = _train(_candidate(word=None, stem_weight=1.0), train)
    assert _labels(classifier, ["Благодарю, супер", "мультиварка", "половник"]) == ["нет товара", "бытовая техника", "посуда"]


def test_character_ngrams_forgive_typos() -> None:
    train = _rows({label: texts for label, texts in REVIEWS.items() if label != "нет товара"})
    typos = ["сковародка", "кострюля", "кофточка", "рубашечка"]
    char = {"ngram_range": (2, 4)}
    assert _labels(_train(_candidate(char=char), train), typos) == ["посуда", "посуда", "одежда", "одежда"]
    words_only = _train(_candidate(), train).predict_proba(typos)
    assert np.ptp(words_only, axis=0).max() == 0  # words it has never seen all look the same


def test_digits_as_zero_make_all_measures_one_pattern() -> None:
    train = _rows({"одежда": ["на 92-74-98", "на 88-70-96"], "нет товара": ["спасибо", "хорошо"]})
    texts = ["на 86-66-90", "на 11-22-33"]
    assert np.ptp(_train(_candidate(digits_as_zero=True), train).predict_proba(texts), axis=0).max() == 0
    word = {"ngram_range": (2, 3)}
    plain, folded = (
        _train(_candidate(digits_as_zero=on, word=word), train).predict_proba(["86-66-90"])[0, CLASSES.index("одежда")]
        for on in (False, True)
    )
    assert folded > plain


def test_heavier_rows_win_over_lighter_ones_that_contradict_them() -> None:
    train = pd.DataFrame(
        {
            "text_clean": ["вещь", "вещь", "платье", "доставка"],
            "label": ["одежда", "нет товара", "одежда", "нет товара"],
            "weight": [1.0, 0.1, 0.5, 0.5],
        }
    )
    candidate = _candidate(class_weight_power=0)
    assert _labels(_train(candidate, train), ["вещь"]) == ["одежда"]
    train["weight"] = [0.1, 1.0, 0.5, 0.5]
    assert _labels(_train(candidate, train), ["вещь"]) == ["нет товара"]


@pytest.mark.parametrize("name", list(BUNDLED))
def test_rows_of_weight_zero_and_rows_without_text_change_nothing(name: str) -> None:
    train = _rows(REVIEWS)
    silent = pd.concat(
        [train, _rows({"посуда": ["платье платье"]}, weight=0.0), _rows({"посуда": ["", " "]})], ignore_index=True
    )
    texts = ["платье в катышках", "кружка", ""]
    expected = _train(BUNDLED[name], train).predict_proba(texts)
    assert np.array_equal(_train(BUNDLED[name], silent).predict_proba(texts), expected)


def test_class_weights_lift_the_rare_class() -> None:
    train = _rows({"одежда": REVIEWS["одежда"], "нет товара": REVIEWS["нет товара"], "посуда": REVIEWS["посуда"][:2]})
    shares = [
        _train(_candidate(class_weight_power=power, C=1), train).predict_proba(["сковорода"])[0, CLASSES.index("посуда")]
        for power in (0.0, 0.5, 1.0)
    ]
    assert shares[0] < shares[1] < shares[2]


# -- thin classes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(BUNDLED))
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_class_of_few_rows_is_learnt_all_the_same(name: str, rows: int) -> None:
    train = _rows({**REVIEWS, "обувь": ["Сапоги жмут", "Туфли натирают пятку", "Кеды, подошва отклеилась"][:rows]})
    classifier = _train(BUNDLED[name], train)
    assert "обувь" in classifier.seen_classes
    shares = classifier.predict_proba(["Сапоги жмут", "сковорода"])[:, CLASSES.index("обувь")]
    assert shares[0] > 0.5 > 0.1 > shares[1] > 0


@pytest.mark.parametrize("name", list(BUNDLED))
def test_two_classes_of_one_row_each_are_enough(name: str) -> None:
    # No n-gram occurs twice here, so the stems are all there is to go by.
    classifier = _train(BUNDLED[name], _rows({"одежда": ["платье"], "посуда": ["кружка"]}))
    assert _labels(classifier, ["платье", "кружка"]) == ["одежда", "посуда"]


def test_category_without_rows_is_answered_with_zero(bundled: TextClassifier) -> None:
    assert bundled.classes == CLASSES
    assert bundled.seen_classes == ["одежда", "посуда", "нет товара"]
    answers = bundled.predict_proba(["телефон не заряжается", ""])
    for label in set(CLASSES) - set(bundled.seen_classes):
        assert (answers[:, CLASSES.index(label)] == 0).all()


# -- what they answer ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(st.none(), st.text(max_size=60), st.just(float("nan"))), max_size=5))
def test_any_texts_get_probabilities(bundled: TextClassifier, texts: list[Any]) -> None:
    answers = bundled.predict_proba(texts)
    assert answers.shape == (len(texts), len(CLASSES))
    assert answers.dtype == np.float64
    assert (answers >= 0).all()
    assert answers.sum(axis=1) == pytest.approx(np.ones(len(texts)))


@pytest.mark.parametrize("text", [None, float("nan"), "", "  ", "😀", "https://example.com/a"])
def test_text_without_content_gets_the_shares_of_training(bundled: TextClassifier, text: Any) -> None:
    expected = [1 / 3 if label in REVIEWS else 0.0 for label in CLASSES]
    assert bundled.predict_proba(["платье", text])[1].tolist() == pytest.approx(expected)


def test_raw_text_is_answered_like_clean_text(bundled: TextClassifier) -> None:
    raw = "<b>ПЛАТЬЕ</b> &quot;огонь&quot; 😍 https://example.com/x  сёло"
    clean = 'платье "огонь" село'
    assert np.array_equal(bundled.predict_proba([raw]), bundled.predict_proba([clean]))


def test_answer_does_not_depend_on_the_rest_of_the_batch(bundled: TextClassifier) -> None:
    texts = [text for part in REVIEWS.values() for text in part]
    together = bundled.predict_proba(texts)
    assert np.allclose(together, np.vstack([bundled.predict_proba([text]) for text in texts]), atol=1e-12)


@pytest.mark.parametrize("name", list(BUNDLED))
def test_equal_seeds_give_equal_classifiers(name: str) -> None:
    texts = ["платье", "кружка с трещиной", "всё хорошо"]
    first, second = (_train(BUNDLED[name], seed=7).predict_proba(texts) for _ in range(2))
    assert np.array_equal(first, second)


# -- search ----------------------------------------------------------------------------------------------------------


VALIDATION = _rows({"посуда": ["половник", "дуршлаг", "бокалы"], "одежда": ["пижама", "носки", "жакет"]})


def test_search_takes_what_is_best_on_validation() -> None:
    classifier = _train(_candidate(search={"stem_weight": [0.0, 0.5], "C": [10, 0.001]}), None, VALIDATION)
    assert (classifier.chosen["stem_weight"], classifier.chosen["C"]) == (0.5, 10)
    assert classifier.validation_probabilities is not None
    assert np.array_equal(classifier.validation_probabilities, classifier.predict_proba(VALIDATION["text_clean"].tolist()))


def test_search_over_feature_sets_fits_each_anew() -> None:
    char = {"ngram_range": (2, 4)}
    searched = _train(
        _candidate(search={"char": [None, char]}), None, _rows({"посуда": ["сковародка"], "одежда": ["кофточка"]})
    )
    plain = _train(_candidate(char=char))
    assert searched.chosen["char"] is not None
    assert np.array_equal(searched.predict_proba(["кофточка", "ложка"]), plain.predict_proba(["кофточка", "ложка"]))


def test_equal_scores_go_to_the_setting_written_first() -> None:
    validation = _rows({"одежда": ["Платье, ткань"], "посуда": ["сковорода"]})
    for order in ([10, 30], [30, 10]):
        assert _train(_candidate(search={"C": order}), None, validation).chosen["C"] == order[0]


def test_search_without_validation_rows_takes_the_first_setting() -> None:
    assert _train(_candidate(search={"C": [3, 1]})).chosen["C"] == 3


# -- what cannot be trained ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop(columns=["weight"]), "candidate trial: train has no column weight"),
        (lambda rows: rows.assign(label="одежда"), "at least two classes, found одежда"),
        (lambda rows: rows.assign(weight=0.0), "at least two classes, found none"),
        (lambda rows: rows.head(0), "at least two classes, found none"),
        (lambda rows: rows.assign(label=["космос", *rows["label"][1:]]), "row 0, column label: 'космос' is no category"),
        (lambda rows: rows.assign(weight=[1.0, -1.0, *rows["weight"][2:]]), r"row 1, column weight: .*found.*-1\.0"),
        (lambda rows: rows.assign(weight=[1.0, None, *rows["weight"][2:]]), "row 1, column weight"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_with_their_place(change: Any, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        _train(_candidate(), change(_rows(REVIEWS)))


def test_texts_without_any_frequent_ngram_name_the_setting() -> None:
    with pytest.raises(TrainingError, match="lower min_df"):
        _train(_candidate(word={"ngram_range": (1, 1), "min_df": 50}))


def test_candidate_of_stems_alone_needs_a_taxonomy_with_stems() -> None:
    with pytest.raises(TrainingError, match="no keyword stems"):
        _train(_candidate(word=None, stem_weight=1.0), stems={})


def test_validation_without_labels_is_refused() -> None:
    with pytest.raises(TrainingError, match="validation has no column label"):
        _train(_candidate(), None, VALIDATION.drop(columns=["label"]))


# -- files -----------------------------------------------------------------------------------------------------------


def test_saved_classifier_answers_as_before(bundled: TextClassifier, tmp_path: Path) -> None:
    bundled.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    texts = ["Платье село", "дуршлаг", "", None, "пришло 12.05, 92-74-98"]
    assert np.array_equal(loaded.predict_proba(texts), bundled.predict_proba(texts))
    assert (loaded.classes, loaded.chosen) == (bundled.classes, bundled.chosen)
    assert loaded.validation_probabilities is None


def test_saved_folder_says_what_it_is_and_holds_no_pickle(bundled: TextClassifier, tmp_path: Path) -> None:
    bundled.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.skops"]
    card = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert (card["kind"], card["classes"]) == ("linear", CLASSES)
    assert card["candidate"]["name"] in BUNDLED
    assert set(card["versions"]) >= {"scikit-learn", "skops"}
    with zipfile.ZipFile(tmp_path / "model.skops") as archive:
        assert {Path(name).suffix for name in archive.namelist()} <= {".json", ".npy", ".npz"}


class Foreign:
    """What somebody put into the file."""

    def __init__(self) -> None:
        self.payload = 1


def test_tampered_file_with_another_type_is_refused(bundled: TextClassifier, tmp_path: Path) -> None:
    bundled.save(tmp_path)
    skops.io.dump({"vectorizers": {}, "estimator": Foreign()}, tmp_path / "model.skops")
    with pytest.raises(RegistryError, match=r"model\.skops: holds .*Foreign"):
        load_model(tmp_path)


def test_parts_that_do_not_fit_together_are_refused(bundled: TextClassifier, tmp_path: Path) -> None:
    bundled.save(tmp_path)
    card = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    for change in (
        {"classes": CLASSES[:3]},
        {"extra": {}},
        {"chosen": {**card["chosen"], "stem_weight": 0.0}},
        {"extra": {**card["extra"], "seen": [0]}},
    ):
        (tmp_path / "model.json").write_text(json.dumps({**card, **change}), encoding="utf-8")
        with pytest.raises(RegistryError, match="train"):
            load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(card), encoding="utf-8")
    for content in ([1, 2], {"vectorizers": {}}, {"vectorizers": 3, "estimator": 4}):
        skops.io.dump(content, tmp_path / "model.skops")
        with pytest.raises(RegistryError, match="train"):
            load_model(tmp_path)


def test_damaged_and_missing_files_are_refused_by_name(bundled: TextClassifier, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"model\.json: cannot be read"):
        load_model(tmp_path)
    bundled.save(tmp_path)
    whole = (tmp_path / "model.skops").read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / "model.skops").write_bytes(content)
        with pytest.raises(RegistryError, match=r"model\.skops: is damaged"):
            load_model(tmp_path)
    (tmp_path / "model.skops").unlink()
    with pytest.raises(RegistryError, match=r"model\.skops: cannot be read"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RegistryError, match=r"model\.json: is no description"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"), [({"kind": "forest"}, "kind: expected one of linear, .*found 'forest'"), ({"format": 9}, "format 9")]
)
def test_folder_of_another_kind_or_format_is_refused(
    bundled: TextClassifier, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    bundled.save(tmp_path)
    card = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    (tmp_path / "model.json").write_text(json.dumps({**card, **change}), encoding="utf-8")
    with pytest.raises(RegistryError, match=said):
        load_model(tmp_path)


def test_other_package_versions_are_logged(bundled: TextClassifier, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundled.save(tmp_path)
    card = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    card["versions"] = {"numpy": "0.1", "no-such-package": "1"}
    (tmp_path / "model.json").write_text(json.dumps(card), encoding="utf-8")
    load_model(tmp_path)
    assert "trained with numpy 0.1" in caplog.text
    assert "no-such-package 1, loaded with none" in caplog.text


# -- real reviews ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voted(shared_data: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Real reviews with the surer reader's vote, every fourth held out."""
    reviews, votes = pd.read_csv(shared_data / "reviews.csv"), pd.read_csv(shared_data / "votes.csv")
    surest = votes.sort_values(["confidence", "annotator"]).drop_duplicates("review_id", keep="last")
    rows = reviews.merge(surest, on="review_id").drop_duplicates("text")
    rows = rows.rename(columns={"text": "text_clean", "confidence": "weight"})[["text_clean", "label", "weight"]]
    held_out = np.arange(len(rows)) % 4 == 0
    return rows[~held_out], rows[held_out]


@pytest.mark.parametrize("name", list(BUNDLED))
def test_defaults_agree_with_votes_on_real_reviews_better_than_the_notebook(
    voted: tuple[pd.DataFrame, pd.DataFrame], name: str
) -> None:
    train, held_out = voted
    true = held_out["label"].tolist()
    started = time.perf_counter()
    classifier = _train(BUNDLED[name], train, held_out)
    assert time.perf_counter() - started < 20
    probabilities = classifier.validation_probabilities
    assert probabilities is not None
    ours = evaluate(true, [CLASSES[i] for i in probabilities.argmax(axis=1)], CLASSES).weighted_f1.value
    notebook = _candidate(C=1, word=NOTEBOOK_WORDS)
    theirs = evaluate(true, _labels(_train(notebook, train), held_out["text_clean"].tolist()), CLASSES).weighted_f1.value
    assert ours > 0.86
    assert ours > theirs + 0.05
    assert expected_calibration_error(true, probabilities, CLASSES).value < 0.08


def test_doubtful_answers_are_marked_only_if_asked_for(tmp_path: Path) -> None:
    texts = [f"платье {number}" for number in range(40)] + [f"чашка {number}" for number in range(40)]
    labels = ["одежда"] * 40 + ["посуда"] * 40
    train = pd.DataFrame({"text_clean": texts, "label": labels, "weight": 1.0})
    # On validation «чашка» is wrong half of the time, so no probability is sure enough for «посуда».
    validation = pd.DataFrame(
        {"text_clean": ["платье 1"] * 10 + ["чашка 2"] * 10, "label": ["одежда"] * 15 + ["посуда"] * 5, "weight": 1.0}
    )
    candidate = next(iter(BUNDLED.values()))
    classifier = candidate.train(TrainingJob(train, validation, classes=["одежда", "посуда"]))
    assert classifier.abstain["посуда"] == 1.0
    assert classifier.predict(["платье 1", "чашка 2"]) == ["одежда", "посуда"]
    classifier.save(tmp_path)
    assert load_model(tmp_path).predict(["платье 1", "чашка 2"], abstain=True) == ["одежда", "не уверен"]
