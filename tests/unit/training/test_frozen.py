"""Frozen encoders: what the linear layer learns, how it is served and saved."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from reviewclf.errors import EncoderUnavailableError, RegistryError, TrainingError
from reviewclf.settings import load_settings
from reviewclf.taxonomy import Taxonomy
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.frozen import FrozenEncoderCandidate, FrozenEncoderClassifier, FrozenEncoderParams
from reviewclf.training.model import TextClassifier, load_model
from reviewclf.training.rows import TrainingJob
from tests.unit.tiny_encoder import CLASSES, save_checkpoint, tiny_body, tiny_tokenizer, toy_reviews

TEXTS, LABELS = toy_reviews(150)
STEMS = {"одежда": ["плать", "юбк"], "посуда": ["чашк", "нож"]}


def _rows(texts: list[str], labels: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"text_clean": texts, "label": labels, "weight": 1.0})


TRAIN, VALIDATION = _rows(TEXTS[:120], LABELS[:120]), _rows(TEXTS[120:], LABELS[120:])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def _train(
    checkpoint: Path, train: pd.DataFrame = TRAIN, validation: pd.DataFrame = VALIDATION, *, stems: Any = None, **params: Any
) -> TextClassifier:
    settings = {
        "checkpoint": checkpoint.name,
        "C": [10.0],
        "max_length": 64,
        "standardise": True,
        "precision": "fp32",
        **params,
    }
    candidate = FrozenEncoderCandidate.model_validate({"name": "trial", "kind": "frozen-encoder", "params": settings})
    return candidate.train(TrainingJob(train, validation, classes=CLASSES, stems=stems or {}, encoders=checkpoint.parent))


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> TextClassifier:
    return _train(checkpoint)


@pytest.fixture(scope="module")
def saved(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    _train(checkpoint, stems=STEMS, stem_weight=0.5, precision="auto", prefix="query: ").save(folder)
    return folder


def _states(texts: list[str], pooling: Any = "mean") -> Any:
    network = EncoderNetwork(tiny_body(), classes=2, pooling=pooling)
    rows = []
    with torch.inference_mode():
        for text in texts:
            encoded = tiny_tokenizer()(text, truncation=True, max_length=64, return_tensors="pt")
            rows.append(network.pooled(encoded["input_ids"], encoded["attention_mask"])[0].double().numpy())
    states = np.array(rows)
    return states / np.linalg.norm(states, axis=1, keepdims=True)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("standardise", "pooling"), [(True, "mean"), (False, "mean"), (True, "cls")])
def test_answers_are_those_of_a_logistic_regression_of_the_states(checkpoint: Path, standardise: bool, pooling: str) -> None:
    classifier = _train(checkpoint, standardise=standardise, pooling=pooling, class_weight_power=1.0, C=[0.5])
    train, test = _states(TEXTS[:120], pooling), _states(TEXTS[120:], pooling)
    if standardise:
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        train, test = (train - mean) / deviation, (test - mean) / deviation
    model = LogisticRegression(C=0.5, class_weight="balanced", max_iter=5000).fit(train, LABELS[:120])
    order = [list(model.classes_).index(name) for name in classifier.seen_classes]
    logits = model.decision_function(test)[:, order] / classifier.temperature
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(classifier.predict_proba(TEXTS[120:])[:, [0, 1, 3]], expected, atol=5e-3)
    assert np.ptp(expected, axis=0).min() > 0.2


def test_unseen_class_gets_nothing_and_empty_texts_the_prior(plain: TextClassifier) -> None:
    answer = plain.predict_proba(["чашка", "", None, "<br>"])
    assert plain.seen_classes == ["одежда", "посуда", "нет товара"]
    assert answer[0, 2] == 0.0
    assert answer[1:].tolist() == [[1 / 3, 1 / 3, 0.0, 1 / 3]] * 3
    assert np.allclose(answer.sum(axis=1), 1.0)


def test_validation_probabilities_are_the_answers_and_calibrated(plain: TextClassifier, checkpoint: Path) -> None:
    assert plain.validation_probabilities is not None
    assert np.array_equal(plain.validation_probabilities, plain.predict_proba(TEXTS[120:]))
    wrong = VALIDATION.assign(label=VALIDATION["label"].iloc[::-1].tolist())
    assert _train(checkpoint, validation=wrong).temperature > 2 * plain.temperature


@pytest.mark.slow
def test_rows_weigh_what_they_say(checkpoint: Path) -> None:
    """Rows of weight 0 and empty ones do not count; a wrong label of little weight hardly does."""
    wrong = _rows(TEXTS[:120], ["посуда"] * 120)
    noise = pd.concat([TRAIN, wrong.assign(weight=0.0), _rows(["", "<br>"], ["мебель", "мебель"])])
    plain = _train(checkpoint, validation=VALIDATION.head(0))
    same = _train(checkpoint, train=noise, validation=VALIDATION.head(0))
    assert np.allclose(same.predict_proba(TEXTS), plain.predict_proba(TEXTS))
    swayed = _train(checkpoint, train=pd.concat([TRAIN, wrong]), validation=VALIDATION.head(0))
    little = _train(checkpoint, train=pd.concat([TRAIN, wrong.assign(weight=0.01)]), validation=VALIDATION.head(0))
    assert abs(little.predict_proba(TEXTS) - plain.predict_proba(TEXTS)).mean() < 0.05
    assert abs(swayed.predict_proba(TEXTS) - plain.predict_proba(TEXTS)).mean() > 0.1


@pytest.mark.slow
def test_c_is_chosen_on_validation(checkpoint: Path) -> None:
    for order in ([1e-6, 1.0], [1.0, 1e-6]):
        chosen = _train(checkpoint, C=order, class_weight_power=0.0).chosen
        assert chosen["C"] == 1.0
    assert _train(checkpoint, validation=VALIDATION.head(0), C=[1e-6, 1.0]).chosen["C"] == 1e-6
    clear = _rows(["юбка платье джинсы"], ["одежда"])
    for ties in ([1.0, 3.0], [3.0, 1.0]):
        assert _train(checkpoint, validation=clear, C=ties).chosen["C"] == ties[0]


def test_stems_help_with_words_the_training_rows_lack(checkpoint: Path) -> None:
    hidden = [row for row in range(120) if not {"платье", "юбка", "чашка", "нож"} & set(TEXTS[row].split())]
    train = TRAIN.iloc[hidden]
    with_stems = _train(checkpoint, train=train, stems={"одежда": ["кофт"], "посуда": ["сковород"]}, stem_weight=1.0, C=[10.0])
    without = _train(checkpoint, train=train, stems={"одежда": ["кофт"]}, stem_weight=0.0, C=[10.0])
    unknown = "Кофточками"
    assert with_stems.predict_proba([unknown])[0, 0] > without.predict_proba([unknown])[0, 0] + 0.05


def test_prefix_is_put_before_each_text(checkpoint: Path, plain: TextClassifier) -> None:
    bare = _rows([f"query {text}" for text in TEXTS[:120]], LABELS[:120])
    prefixed = _train(checkpoint, prefix="query ", validation=VALIDATION.head(0))
    spelled_out = _train(checkpoint, train=bare, validation=VALIDATION.head(0))
    assert np.allclose(prefixed.predict_proba(["чашка"]), spelled_out.predict_proba(["query чашка"]), atol=1e-4)
    assert prefixed.predict_proba(["", None]).tolist() == plain.predict_proba(["", None]).tolist()


def test_two_classes(checkpoint: Path) -> None:
    two = TRAIN[TRAIN["label"] != "посуда"]
    classifier = _train(checkpoint, train=two, validation=VALIDATION[VALIDATION["label"] != "посуда"])
    rows = VALIDATION[VALIDATION["label"] != "посуда"]
    assert f1_score(rows["label"], classifier.predict(rows["text_clean"].tolist()), average="weighted") > 0.7
    assert classifier.predict_proba(["чашка"])[0, [1, 2]].tolist() == [0.0, 0.0]


def test_served_precision_is_chosen_by_labels(checkpoint: Path) -> None:
    """Of the linear layer: one that answers the same to all texts leaves nothing for rounding to change."""
    same = TRAIN.assign(weight=[1.0 if label == "одежда" else 1e-9 for label in TRAIN["label"]])
    classifier = _train(checkpoint, train=same, precision="auto", C=[1e-6], class_weight_power=0.0)
    assert (classifier.exported["served"], classifier.exported["texts"]) == ("int8", 150)
    trained = _train(checkpoint, precision="int8").exported["trials"]
    assert 1e-4 < trained["int8"]["largest_difference"] < 0.5  # type: ignore[index, call-overload, operator]


def test_equal_inputs_give_an_equal_classifier(checkpoint: Path, plain: TextClassifier) -> None:
    assert np.array_equal(_train(checkpoint).predict_proba(TEXTS), plain.predict_proba(TEXTS))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop(columns=["weight"]), "candidate trial: train has no column weight"),
        (lambda rows: rows.assign(label="одежда"), "at least two classes, found одежда"),
        (lambda rows: rows.assign(label=["космос", *rows["label"][1:]]), "row 0, column label: 'космос'"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(checkpoint: Path, change: Any, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        _train(checkpoint, train=change(TRAIN))
    with pytest.raises(TrainingError, match="validation has no column label"):
        _train(checkpoint, validation=VALIDATION.drop(columns=["label"]))


def test_folder_without_an_encoder_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(EncoderUnavailableError, match=r"holds no config\.json"):
        _train(tmp_path)
    damaged = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    with pytest.raises(TrainingError, match="max_length: 65, but the encoder reads 64 tokens"):
        _train(damaged, max_length=65)
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"candidate trial: .*no encoder can be loaded"):
        _train(damaged)


@pytest.mark.parametrize(
    "change", [{"C": []}, {"C": [0]}, {"pooling": "max"}, {"max_length": 0}, {"checkpoint": ""}, {"unknown": 1}]
)
def test_settings_have_a_contract(change: dict[str, Any]) -> None:
    FrozenEncoderParams.model_validate({"checkpoint": "x"})
    with pytest.raises(ValidationError):
        FrozenEncoderParams.model_validate({"checkpoint": "x", **change})


# -- files -------------------------------------------------------------------------------------------------------------


def test_saved_classifier_answers_as_before(plain: TextClassifier, saved: Path, tmp_path: Path) -> None:
    plain.save(tmp_path / "plain")
    texts = [*TEXTS[:20], "", None]
    loaded = load_model(tmp_path / "plain")
    assert isinstance(loaded, FrozenEncoderClassifier)
    assert np.array_equal(loaded.predict_proba(texts), plain.predict_proba(texts))
    first = load_model(saved)
    first.save(tmp_path / "again")
    assert np.array_equal(load_model(tmp_path / "again").predict_proba(texts), first.predict_proba(texts))
    assert {path.name for path in saved.iterdir()} == {"linear.npz", "model.json", "model.onnx", "tokenizer.json"}


def test_serving_needs_neither_torch_nor_scikit_learn(saved: Path) -> None:
    script = """
import json, sys
for name in ("torch", "transformers", "onnx", "sklearn", "mlflow"):
    sys.modules[name] = None
from reviewclf.training.model import load_model
print(json.dumps(load_model(sys.argv[1]).predict_proba(["чашка", "платье", ""]).tolist()))
"""
    ran = subprocess.run([sys.executable, "-c", script, str(saved)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert np.allclose(json.loads(ran.stdout), load_model(saved).predict_proba(["чашка", "платье", ""]), atol=1e-6)


def test_damaged_files_are_refused_by_name(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    path = folder / "linear.npz"
    whole = path.read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(RegistryError, match=r"linear\.npz: is damaged"):
            load_model(folder)
    np.savez(path, weights=np.array([{"a": 1}], dtype=object), bias=np.zeros(3))
    with pytest.raises(RegistryError, match=r"linear\.npz: is damaged"):
        load_model(folder)
    with np.load(saved / "linear.npz") as arrays:
        weights, bias = arrays["weights"], arrays["bias"]
    for wrong in ((weights[:-1], bias), (weights, bias[:-1]), (weights[0], bias), (weights.astype(str), bias)):
        np.savez(path, weights=wrong[0], bias=wrong[1])
        with pytest.raises(RegistryError, match=r"linear\.npz|fit together"):
            load_model(folder)
    path.unlink()
    with pytest.raises(RegistryError, match=r"linear\.npz: cannot be read"):
        load_model(folder)
    path.write_bytes(whole)
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(RegistryError, match=r"model\.onnx: is damaged"):
        load_model(folder)


def test_card_that_does_not_fit_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    for change in ({"seen": [0, 1]}, {"stems": {}}, {"stems": 3}, {"stem_weight": "x"}, {"stem_weight": 0.0}):
        (folder / "model.json").write_text(json.dumps({**card, "extra": {**card["extra"], **change}}), encoding="utf-8")
        with pytest.raises(RegistryError, match="train"):
            load_model(folder)


# -- real reviews ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_encoder_on_real_reviews(shared_data: Path) -> None:
    checkpoint = shared_data.parent / "models" / "e5-small-ru"
    if not checkpoint.exists():
        pytest.skip("e5-small-ru is not here: put it into ../shared/models")
    reviews, votes = pd.read_csv(shared_data / "reviews.csv"), pd.read_csv(shared_data / "votes.csv")
    surest = votes.sort_values(["confidence", "annotator"]).drop_duplicates("review_id", keep="last")
    rows = reviews.merge(surest, on="review_id").drop_duplicates("text")
    rows = rows.rename(columns={"text": "text_clean", "confidence": "weight"})[["text_clean", "label", "weight"]]
    held_out = np.arange(len(rows)) % 4 == 0
    taxonomy = Taxonomy.load(load_settings(_env_file=None).taxonomy)
    params = {"checkpoint": "e5-small-ru", "precision": "fp32"}
    candidate = FrozenEncoderCandidate.model_validate({"name": "e5", "kind": "frozen-encoder", "params": params})
    stems = taxonomy.keyword_stems
    classifier = candidate.train(
        TrainingJob(rows[~held_out], rows[held_out], classes=taxonomy.names, stems=stems, encoders=checkpoint.parent)
    )
    predicted = classifier.predict(rows[held_out]["text_clean"].tolist())
    assert f1_score(rows[held_out]["label"], predicted, average="weighted") > 0.88
