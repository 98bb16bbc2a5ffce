"""The dataset: nothing leaks, nothing is lost, the same input gives the same splits."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reviewclf.data.dataset import build_dataset
from reviewclf.data.duplicates import near_duplicate_groups
from reviewclf.data.gold import Gold, check_gold, load_gold
from reviewclf.data.leaks import check_leaks
from reviewclf.errors import DataContractError, DatasetError, LeakError
from reviewclf.manifest import digest_of
from reviewclf.settings import AugmentationSettings, DatasetSettings, load_settings
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import text_hash

CATEGORIES = ["обувь", "одежда", "нет товара"]
OPTIONS = DatasetSettings()

TEXTS = {
    "обувь": [
        "Кроссовки лёгкие, подошва гнётся хорошо, бегаю каждый день",
        "Сапоги протекли после первого же дождя, клей виден по шву",
        "Ботинки тяжёлые, зато тёплые, на широкую ногу в самый раз",
        "Тапочки пушистые, мама в восторге, заказала ещё одну пару",
        "Босоножки натёрли пятку до крови, каблук качается",
        "Кеды белые, быстро пачкаются, но отстирались в машинке",
    ],
    "одежда": [
        "Платье село идеально, ткань приятная к телу и не мнётся",
        "Пуховик продувает насквозь, пух лезет из всех швов",
        "Джинсы большемерят, пришлось ушивать в талии у портнихи",
        "Свитер колючий, катышки появились через неделю носки",
        "Рубашка плотная, воротник держит форму, брала мужу на юбилей",
        "Юбка короче, чем на фото, зато подкладка есть и молния не заедает",
    ],
    "нет товара": [
        "Доставили за три дня, курьер вежливый, всем советую",
        "Деньги вернули только после спора, продавец не отвечал месяц",
        "Всё соответствует описанию, упаковано хорошо, пять звёзд",
        "Посылка так и не пришла, трек не отслеживается с мая",
        "Не то, что ожидала, отправила обратно без проблем",
        "Спасибо большое, качество за свои деньги отличное",
    ],
}


def labelled(texts: dict[str, list[str]] = TEXTS, **columns: object) -> pd.DataFrame:
    rows = [
        {"review_id": f"{label[:2]}{number}", "text_clean": text, "text_hash": text_hash(text), "label": label}
        for label, of_label in texts.items()
        for number, text in enumerate(of_label)
    ]
    return pd.DataFrame(rows).assign(
        **{"confidence": 0.9, "origin": "llm", "method": "posterior", "hint": False, **columns}  # type: ignore[arg-type]
    )


def gold(*rows: tuple[str, str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["text", "label"]).assign(review_id=[f"g{n}" for n in range(len(rows))])
    return check_gold(frame, CATEGORIES)[0]


def build(rows: pd.DataFrame, judged: pd.DataFrame | None = None, *, seed: int = 42) -> tuple[pd.DataFrame, pd.DataFrame]:
    return build_dataset(rows, judged, OPTIONS, min_confidence=0.5, seed=seed)


def test_every_class_trains_and_validates() -> None:
    dataset, left_out = build(labelled())
    table = dataset.groupby(["label", "split"]).size().unstack()
    assert (table["train"] >= 4).all()
    assert (table["validation"] >= 1).all()
    assert left_out.empty


def test_gold_is_the_test_split_and_nothing_else() -> None:
    judged = gold(("Шлёпанцы скользкие на мокрой плитке", "обувь"), ("Пальто с рукавом реглан, драп плотный", "одежда"))
    dataset, _ = build(labelled(), judged)
    test = dataset[dataset["split"] == "test"]
    assert sorted(test["review_id"]) == ["g0", "g1"]
    assert set(test["origin"]) == {"human"}
    assert not set(dataset.loc[dataset["split"] != "test", "review_id"]) & {"g0", "g1"}


@pytest.mark.parametrize(
    ("copy", "reason"),
    [
        ("Платье село идеально, ткань приятная к телу и не мнётся", "same_text_as_gold"),
        ("ПЛАТЬЕ СЕЛО ИДЕАЛЬНО — ткань приятная к телу и не мнется!!!", "same_text_as_gold"),
        ("Платье село идеально, ткань преятная к телу и не мнётся", "near_duplicate_of_gold"),
        ("Платье село идеально, ткань приятная к телу и совсем не мнётся", "near_duplicate_of_gold"),
    ],
)
def test_copy_of_a_gold_review_is_left_out_with_the_reason(copy: str, reason: str) -> None:
    dataset, left_out = build(labelled(), gold((copy, "одежда")))
    assert left_out[["review_id", "reason"]].to_numpy().tolist() == [["од0", reason]]
    assert "од0" not in set(dataset["review_id"])


def test_near_duplicates_stay_on_one_side() -> None:
    texts = {label: [*of_label, *(f"{text} очень" for text in of_label)] for label, of_label in TEXTS.items()}
    for seed in range(5):
        dataset, _ = build(labelled(texts), seed=seed)
        assert (dataset.groupby("group")["split"].nunique() == 1).all()
        assert dataset["group"].nunique() == 18
        assert set(dataset["split"]) == {"train", "validation"}


def test_rows_without_a_sure_label_are_left_out() -> None:
    rows = labelled()
    rows.loc[0, "label"] = None
    rows.loc[1, "confidence"] = 0.4
    dataset, left_out = build(rows)
    assert dict(zip(left_out["review_id"], left_out["reason"], strict=True)) == {"об0": "no_label", "об1": "low_confidence"}
    assert len(dataset) + len(left_out) == len(rows)


def test_class_with_a_single_row_is_left_out_and_said_so() -> None:
    dataset, left_out = build(labelled({**TEXTS, "обувь": TEXTS["обувь"][:1]}))
    assert left_out["reason"].tolist() == ["class_too_small"]
    assert set(dataset["label"]) == {"одежда", "нет товара"}


def test_hints_train_with_less_weight_and_do_not_validate() -> None:
    rows = labelled()
    rows["hint"] = rows["review_id"].str.endswith(("0", "1"))
    for seed in range(5):
        dataset, _ = build(rows, seed=seed)
        hints = dataset["review_id"].str.endswith(("0", "1"))
        assert set(dataset.loc[hints, "split"]) == {"train"}
        assert dataset.loc[hints, "weight"].max() < dataset.loc[~hints, "weight"].min()


def test_hints_validate_where_there_is_nothing_better() -> None:
    dataset, _ = build(labelled(hint=True))
    assert (dataset["split"] == "validation").any()


def test_synthetic_rows_train_only() -> None:
    rows = labelled()
    rows["origin"] = ["synthetic" if review_id.endswith(("0", "1", "2")) else "llm" for review_id in rows["review_id"]]
    for seed in range(5):
        dataset, _ = build(rows, seed=seed)
        assert set(dataset.loc[dataset["origin"] == "synthetic", "split"]) == {"train"}


# -- caps, weights, label errors --------------------------------------------------------------------------------------


def test_same_text_under_two_ids_stays_once_with_the_label_of_people() -> None:
    rows = labelled()
    twin = rows.iloc[[0]].assign(review_id="twin", text_clean=rows["text_clean"].iloc[0].upper() + "!", origin="human")
    dataset, left_out = build(pd.concat([rows, twin], ignore_index=True))
    assert left_out[["review_id", "reason"]].to_numpy().tolist() == [["об0", "same_text_under_another_id"]]
    assert "twin" in set(dataset["review_id"])


def test_review_that_repeats_a_repetition_of_gold_is_left_out_too() -> None:
    words = ["синее", "платье", "пришло", "быстро", "ткань", "приятная", "швы", "ровные", "сидит", "хорошо", "цвет", "яркий"]
    words += ["рукав", "длинный", "воротник"]
    chain = [" ".join(words[i : i + 11]) for i in range(5)]
    rows = labelled({**TEXTS, "одежда": [*TEXTS["одежда"], *chain[1:]]})
    _, left_out = build(rows, gold((chain[0], "одежда")))
    assert set(left_out["text_clean"]) == set(chain[1:])
    assert set(left_out["reason"]) == {"near_duplicate_of_gold"}


def test_cap_keeps_the_surest_training_rows_and_no_validation_row_goes() -> None:
    rows = labelled()
    rows["confidence"] = [0.6 + 0.05 * (number % 6) for number in range(len(rows))]
    free, _ = build(rows)
    capped, left_out = build_dataset(rows, None, DatasetSettings(max_class_rows=2), min_confidence=0.5, seed=42)
    assert capped[capped["split"] == "train"].groupby("label").size().tolist() == [2, 2, 2]
    assert (capped["split"] == "validation").sum() == (free["split"] == "validation").sum()
    assert set(left_out["reason"]) == {"over_class_cap"}
    assert len(capped) + len(left_out) == len(rows)
    for label, train in capped[capped["split"] == "train"].groupby("label"):
        gone = left_out[left_out["label"] == label].merge(rows, on="review_id")
        assert train["weight"].min() >= gone["confidence"].max()


@pytest.mark.parametrize("treatment", ["remove", "downweight"])
def test_suspected_label_errors_are_treated_on_the_train_side_alone(treatment: str) -> None:
    shoes = [
        f"Ботинки {word} на зиму" for word in ("тёплые", "жмут", "скользят", "лёгкие", "кожаные", "на меху", "высокие", "узкие")
    ]
    dresses = [
        f"Платье {word} на лето" for word in ("лёгкое", "тесное", "длинное", "синее", "мятое", "узкое", "белое", "новое")
    ]
    rows = labelled({"обувь": [*shoes, "Платье широкое на лето"], "одежда": dresses})
    options = DatasetSettings.model_validate({"label_errors": treatment, "label_error_weight": 0.25})
    wrong = "об8"
    for seed in range(4):
        plain, _ = build(rows, seed=seed)
        dataset, left_out = build_dataset(rows, None, options, min_confidence=0.5, seed=seed)
        side = plain.set_index("review_id").loc[wrong, "split"]
        treated = set(left_out["review_id"]) | set(dataset.loc[dataset["weight"] < 0.9, "review_id"])
        assert (wrong in treated) == (side == "train")
        held = [frame[frame["split"] == "validation"].reset_index(drop=True) for frame in (dataset, plain)]
        pd.testing.assert_frame_equal(*held)
        assert len(dataset) + len(left_out) == len(rows)


def test_labels_by_people_are_never_suspected() -> None:
    dresses = [f"Платье {n} на лето" for n in range(8)]
    rows = labelled({"обувь": [f"Ботинки {n} на зиму" for n in range(8)] + ["Платье широкое на лето"], "одежда": dresses})
    rows["origin"] = "human"
    _, left_out = build_dataset(rows, None, DatasetSettings(label_errors="remove"), min_confidence=0.5, seed=1)
    assert left_out.empty


def written(*texts: str, label: str = "обувь", confidence: float = 1.0) -> pd.DataFrame:
    return labelled({label: list(texts)}, origin="synthetic", confidence=confidence).assign(
        review_id=[f"s{number}" for number in range(len(texts))]
    )


def test_synthetic_rows_train_with_their_weight_and_move_no_real_row() -> None:
    plain, _ = build(labelled())
    rows = pd.concat([labelled(), written("Галоши блестят, нога в них не потеет", confidence=0.8)], ignore_index=True)
    dataset, left_out = build(rows)
    assert left_out.empty
    added = dataset[dataset["origin"] == "synthetic"]
    assert added[["split", "weight"]].to_numpy().tolist() == [["train", 0.8 * AugmentationSettings().weight]]
    pd.testing.assert_frame_equal(dataset[dataset["origin"] != "synthetic"].reset_index(drop=True), plain)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_synthetic_row_that_repeats_a_real_one_is_left_out(split: str) -> None:
    plain, _ = build(labelled())
    victim = plain.loc[(plain["split"] == split), "text_clean"].iloc[0]
    rows = pd.concat([labelled(), written(victim.replace("а", "о", 2))], ignore_index=True)
    _, left_out = build(rows)
    reason = {"train": "near_duplicate_of_real", "validation": "near_duplicate_of_validation"}[split]
    assert left_out[["review_id", "reason"]].to_numpy().tolist() == [["s0", reason]]


def test_synthetic_paraphrase_of_gold_is_left_out() -> None:
    judged = gold(("Шлёпанцы скользкие на мокрой плитке в бассейне", "обувь"))
    rows = pd.concat([labelled(), written("На мокрой плитке бассейна шлёпанцы очень скользкие")], ignore_index=True)
    _, left_out = build(rows, judged)
    assert left_out[["review_id", "reason"]].to_numpy().tolist() == [["s0", "near_duplicate_of_gold"]]


def test_class_of_synthetic_rows_alone_is_left_out() -> None:
    rows = pd.concat([labelled(), written("Пароварка гудит", "Утюг течёт", "Фен пахнет", label="техника")], ignore_index=True)
    _, left_out = build(rows)
    assert left_out["reason"].tolist() == ["class_too_small"] * 3


def test_one_class_is_not_enough_and_the_message_says_what_to_do() -> None:
    with pytest.raises(DatasetError, match="REVIEWCLF_VOTES"):
        build(labelled({"обувь": TEXTS["обувь"]}))


row = st.tuples(
    st.text("абвгд ёж.!", min_size=3, max_size=40).map(str.strip).filter(bool),
    st.sampled_from(CATEGORIES),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from(["llm", "llm", "human", "synthetic"]),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(row, min_size=8, max_size=40),
    st.integers(0, 9),
    st.randoms(use_true_random=False),
)
def test_any_rows_in_any_order_split_the_same_without_loss_or_leak(rows: list, seed: int, random: object) -> None:
    frame = pd.DataFrame(rows, columns=["text_clean", "label", "confidence", "hint", "origin"])
    frame["text_hash"] = frame["text_clean"].map(text_hash)
    frame["review_id"] = [f"r{number}" for number in range(len(frame))]
    frame = frame.assign(method="posterior", hint=frame["hint"] & (frame["origin"] == "llm"))
    judged = gold(("абв где ёж", "обувь"), ("ёж ёж ёж ёж", "одежда"))
    try:
        dataset, left_out = build(frame, judged, seed=seed)
    except DatasetError:  # too few rows are left, as another test shows
        return
    shuffled = frame.sample(frac=1, random_state=random.randint(0, 2**32 - 1))  # type: ignore[attr-defined]
    again, left_out_again = build(shuffled, judged, seed=seed)
    pd.testing.assert_frame_equal(dataset, again)
    pd.testing.assert_frame_equal(left_out, left_out_again)
    assert digest_of(dataset.to_dict("records")) == digest_of(again.to_dict("records"))
    of_gold = set(near_duplicate_groups(judged["text_clean"].tolist()))
    together = near_duplicate_groups([*judged["text_clean"], *frame["text_clean"]])
    in_gold_groups = {text_hash(t) for t, g in zip(frame["text_clean"], together[2:], strict=True) if g in set(together[:2])}
    real = dataset[dataset["origin"].isin(["llm"]) & (dataset["split"] != "test")]
    assert not in_gold_groups & set(real["text_clean"].map(text_hash))
    assert of_gold
    assert set(dataset.loc[dataset["origin"] == "synthetic", "split"]) <= {"train"}
    assert sorted([*dataset["review_id"], *left_out["review_id"]]) == sorted([*frame["review_id"], "g0", "g1"])
    assert set(dataset.loc[dataset["split"] == "train", "label"]) == set(dataset.loc[dataset["split"] != "test", "label"])


# -- the leak check itself, on planted leaks -------------------------------------------------------------------------


def planted(text: str, split: str, origin: str = "llm") -> pd.DataFrame:
    dataset, _ = build(labelled(), gold(("Шлёпанцы скользкие на мокрой плитке в бассейне", "обувь")))
    extra = (
        dataset[dataset["split"] == "train"]
        .iloc[:1]
        .assign(review_id="planted", text_clean=text, split=split, origin=origin, group="planted")
    )
    return pd.concat([dataset, extra], ignore_index=True)


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("Шлёпанцы скользкие на мокрой плитке в бассейне", "the same text under two ids"),
        ("шлепанцы, скользкие на мокрой плитке в бассейне!", "the same but for case and punctuation"),
        ("Шлёпанцы скользские на мокрой плитке в бассейне", "near-duplicate, similarity 0.90"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_planted_copy_of_gold_is_caught_and_named(text: str, how: str, split: str) -> None:
    with pytest.raises(LeakError, match=f"of {split} repeat a row of test: planted ~ g0 \\({how}"):
        check_leaks(planted(text, split), similarity=OPTIONS.near_duplicate_similarity)


def test_planted_synthetic_paraphrase_of_gold_is_caught_and_named() -> None:
    # Less alike than a copy with a typo: as a real review it would pass for another one.
    text = "На мокрой плитке бассейна шлёпанцы очень скользкие"
    check_leaks(planted(text, "train"), similarity=0.7, synthetic_similarity=0.5)
    with pytest.raises(LeakError, match=r"planted ~ g0 \(synthetic: near-duplicate, similarity 0\.[56]"):
        check_leaks(planted(text, "train", "synthetic"), similarity=0.7, synthetic_similarity=0.5)


def test_group_in_two_splits_is_caught_and_named() -> None:
    leaky = planted("Совсем другой отзыв о совсем другом", "validation")
    leaky.loc[leaky["review_id"] == "planted", "group"] = leaky.loc[leaky["split"] == "train", "group"].iloc[0]
    with pytest.raises(LeakError, match=r"1 group\(s\) in two splits: \w+ in train and validation"):
        check_leaks(leaky, similarity=0.7)


def test_equal_ids_of_two_sources_are_no_leak() -> None:
    judged = gold(("Шлёпанцы скользкие на мокрой плитке", "обувь")).assign(review_id="об0")
    dataset, _ = build(labelled(), judged)
    assert (dataset["review_id"] == "об0").sum() == 2


def test_planted_copy_across_train_and_validation_is_caught_and_named() -> None:
    dataset, _ = build(labelled())
    victim = dataset[dataset["split"] == "validation"].iloc[0]
    leaky = pd.concat([dataset, victim.to_frame().T.assign(review_id="planted", split="train")], ignore_index=True)
    with pytest.raises(LeakError, match=f"of train repeat a row of validation: planted ~ {victim['review_id']}"):
        check_leaks(leaky, similarity=OPTIONS.near_duplicate_similarity)


def test_test_row_that_no_person_labelled_is_caught() -> None:
    with pytest.raises(LeakError, match="not labelled by people: planted"):
        check_leaks(planted("Совсем другой отзыв о совсем другом", "test"), similarity=0.7)


def test_synthetic_row_outside_train_is_caught() -> None:
    with pytest.raises(LeakError, match=r"synthetic.*outside train: planted"):
        check_leaks(planted("Совсем другой отзыв о совсем другом", "validation", "synthetic"), similarity=0.7)


# -- gold ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"text": ["a"]}), "needs the column.*label; found text"),
        (pd.DataFrame({"text": ["туфли", "стол"], "label": ["обувь", "мебель"]}), "row 2: label 'мебель'"),
        (pd.DataFrame({"text": ["туфли", None], "label": ["обувь", "обувь"]}), "row 2: the text is empty"),
        (pd.DataFrame({"text": ["туфли"], "label": [None]}), "row 1: label ''"),
    ],
)
def test_unusable_gold_is_refused_with_file_and_row(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataContractError, match=message) as error:
        check_gold(frame, CATEGORIES, name="gold.csv")
    assert "gold.csv" in str(error.value)


@pytest.mark.case(60)
def test_gold_without_a_row_is_refused_and_names_the_setting() -> None:
    with pytest.raises(DataContractError, match=r"gold\.csv: holds no reviews, only a header.*REVIEWCLF_GOLD"):
        check_gold(pd.DataFrame({"text": [], "label": []}), CATEGORIES, name="gold.csv")


@pytest.mark.case(61)
def test_gold_labels_may_differ_in_case_and_spaces() -> None:
    frame = pd.DataFrame({"text": ["туфли", "платье"], "label": ["ОБУВЬ\u00a0", "  Одежда"]})
    assert check_gold(frame, CATEGORIES)[0]["label"].tolist() == ["обувь", "одежда"]


@pytest.mark.case(60)
@pytest.mark.parametrize("content", ["text,label\n", "\n", ""])
def test_gold_file_without_a_row_is_refused_when_it_is_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "gold.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataContractError, match=r"gold\.csv: is empty.*REVIEWCLF_GOLD"):
        read_gold(tmp_path / "gold.csv")


@pytest.mark.case(38)
@pytest.mark.case(61)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1251"])
def test_gold_file_is_read_as_excel_saves_it(tmp_path: Path, encoding: str) -> None:
    rows = ["review_id\ttext\tlabel", "007\tПлатье село\tОдежда", '8\t"Туфли"\tобувь ', "9\tУтюг искрит\tбытовая  техника"]
    (tmp_path / "gold.csv").write_bytes("\r\n".join(rows).encode(encoding))
    frame = read_gold(tmp_path / "gold.csv").frame
    assert frame["label"].tolist() == ["одежда", "обувь", "бытовая техника"]
    assert frame["review_id"].tolist() == ["007", "8", "9"]


def read_gold(path: Path) -> Gold:
    options = load_settings(_env_file=None, gold=str(path))
    gold = load_gold(options, Taxonomy.load(options.taxonomy))
    assert gold is not None
    return gold


def test_every_unusable_gold_row_is_named() -> None:
    frame = pd.DataFrame({"text": [f"туфли {n}" for n in range(14)], "label": ["обувь", "мебель", *["еда"] * 12]})
    with pytest.raises(DataContractError, match=r"row 2: label 'мебель'; row 3: label 'еда'; .*and 3 more .*13 such row"):
        check_gold(frame, CATEGORIES, name="gold.csv")


def test_gold_that_was_read_in_the_wrong_encoding_is_read_again_or_refused() -> None:
    misread = pd.DataFrame({"text": ["Туфли жмут".encode().decode("cp1251")], "label": ["обувь".encode().decode("cp1251")]})
    assert check_gold(misread, CATEGORIES)[0][["text_clean", "label"]].to_numpy().tolist() == [["Туфли жмут", "обувь"]]
    lost = pd.DataFrame({"text": ["туфли", "????? ???? ??????"], "label": ["обувь", "обувь"]})
    with pytest.raises(DataContractError, match="row 2: the letters of the text are lost"):
        check_gold(lost, CATEGORIES)


def test_review_that_two_readers_labelled_alike_counts_once_and_it_is_said() -> None:
    frame = pd.DataFrame(
        {"review_id": [1, 2, 1], "text": ["Туфли жмут", "Платье", "туфли жмут!"], "label": ["обувь", "одежда", "Обувь"]}
    )
    gold, notes = check_gold(frame, CATEGORIES, name="gold.csv")
    assert gold[["review_id", "text"]].to_dict("records") == [
        {"review_id": "1", "text": "Туфли жмут"},
        {"review_id": "2", "text": "Платье"},
    ]
    assert notes == ["gold.csv: 1 review(s) were labelled alike more than once and count once: row 1, row 3"]


def test_readers_who_contradict_each_other_are_named_with_both_labels() -> None:
    frame = pd.DataFrame({"text": ["Туфли жмут", "Платье", "туфли жмут!"], "label": ["обувь", "одежда", "одежда"]})
    with pytest.raises(DataContractError, match=r"gold\.csv: .*row 1 «обувь» and row 3 «одежда».*ambiguous"):
        check_gold(frame, CATEGORIES, name="gold.csv")


@pytest.mark.parametrize(
    ("ambiguous", "kept"),
    [([False, False, True], ["обувь", "одежда"]), (["True", "", "true"], ["одежда"]), ([1, 0, 0], ["одежда", "одежда"])],
)
def test_rows_that_are_marked_ambiguous_give_way(ambiguous: list[object], kept: list[str]) -> None:
    frame = pd.DataFrame({"text": ["Туфли жмут", "Платье", "туфли жмут"], "label": ["обувь", "одежда", "одежда"]})
    gold, notes = check_gold(frame.assign(ambiguous=ambiguous), CATEGORIES, name="gold.csv")
    assert gold["label"].tolist() == kept
    assert notes == ["gold.csv: rows marked ambiguous gave way in 1 review(s): row 1 «обувь» and row 3 «одежда»"]


def test_row_that_is_marked_ambiguous_alone_is_judged_on_as_before() -> None:
    frame = pd.DataFrame({"text": ["Туфли"], "label": ["обувь"], "ambiguous": [True]})
    assert len(check_gold(frame, CATEGORIES)[0]) == 1


def test_gold_without_ids_goes_by_its_texts() -> None:
    frame, _ = check_gold(pd.DataFrame({"text": ["Туфли <b>жмут</b>"], "label": [" обувь "]}), CATEGORIES)
    assert frame.to_dict("records") == [
        {
            "review_id": text_hash("туфли жмут"),
            "text_clean": "Туфли жмут",
            "text_hash": text_hash("туфли жмут"),
            "label": "обувь",
            "text": "Туфли <b>жмут</b>",
        }
    ]


@pytest.mark.parametrize("text", [5, ["Платье"], {"text": "Платье"}])
def test_gold_text_that_is_no_text_is_told_with_its_row(text: object) -> None:
    with pytest.raises(DataContractError, match=rf"row 2: {type(text).__name__}, expected text"):
        check_gold(pd.DataFrame({"text": ["Юбка", text], "label": ["одежда", "одежда"]}), ["одежда"])
