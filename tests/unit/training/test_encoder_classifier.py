"""Encoder classifiers as served: answers, calibration, files, and no torch."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoTokenizer

from reviewclf.errors import RegistryError, TrainingError
from reviewclf.training import onnx_session
from reviewclf.training.calibration import abstain_thresholds, fit_temperature
from reviewclf.training.encoder_classifier import EncoderClassifier
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.model import load_model
from reviewclf.training.onnx_session import OnnxEncoder, TextReader, default_threads, softmax
from tests.unit.tiny_encoder import CLASSES, SEEN, tiny_network, tiny_tokenizer, torch_logits, toy_reviews

TEXTS, LABELS = toy_reviews()
PRIOR = np.array([0.5, 0.3, 0.0, 0.2])
VALIDATION = toy_reviews(150)[0][120:]
VALIDATION_LABELS = toy_reviews(150)[1][120:]


def _classifier(labels: Sequence[str] = VALIDATION_LABELS, **changes: Any) -> EncoderClassifier:
    arguments: dict[str, Any] = {
        "classes": CLASSES,
        "seen": SEEN,
        "prior": PRIOR,
        "candidate": {"name": "tiny"},
        "chosen": {"learning_rate": 0.1},
        "texts": TEXTS,
        "max_length": 64,
        **changes,
    }
    classifier = EncoderClassifier.from_network(tiny_network(), tiny_tokenizer(), **arguments)
    classifier.calibrate(pd.DataFrame({"text_clean": VALIDATION, "label": labels}), scale=True)
    return classifier


@pytest.fixture(scope="module")
def fp32() -> EncoderClassifier:
    return _classifier(precision="fp32")


def _equal(classifier: EncoderClassifier, first: str, second: str) -> bool:
    """Whether the answers are the same, also in what is nearly 0."""
    a, b = (np.log(classifier.predict_proba([text])[0, SEEN]) for text in (first, second))
    return np.allclose(a, b, atol=1e-3)


@pytest.fixture(scope="module")
def saved(fp32: EncoderClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    fp32.save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


# -- answers -----------------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_network_at_the_temperature(fp32: EncoderClassifier) -> None:
    expected = np.zeros((len(TEXTS), 4))
    expected[:, SEEN] = softmax(torch_logits(tiny_network(), TEXTS)[:, SEEN] / fp32.temperature)
    assert np.allclose(fp32.predict_proba(TEXTS), expected, atol=1e-4)
    assert fp32.temperature != 1.0


def test_raw_texts_are_cleaned_and_keep_their_order(fp32: EncoderClassifier) -> None:
    raw = ["<b>чашка</b>", "", "платье  и\tюбка https://ya.ru/x", None, "ждал ё", float("nan"), "👍", TEXTS[2]]
    answer = fp32.predict_proba(raw)  # type: ignore[arg-type]
    clean = ["чашка", "платье и юбка", "ждал ё", TEXTS[2]]
    assert np.allclose(answer[[0, 2, 4, 7]], fp32.predict_proba(clean), atol=1e-6)
    assert np.array_equal(answer[[1, 3, 5, 6]], np.tile(PRIOR, (4, 1)))
    assert np.allclose(answer.sum(axis=1), 1.0)
    assert not _equal(fp32, "ждал Ё", "ждал ё")
    assert not _equal(fp32, "ждал ё", "ждал е")


def test_classes_never_seen_have_probability_0(fp32: EncoderClassifier) -> None:
    assert fp32.seen_classes == ["одежда", "посуда", "нет товара"]
    assert (fp32.predict_proba(TEXTS)[:, 2] == 0.0).all()
    some_prior = _classifier(precision="fp32", prior=np.full(4, 0.25))
    assert some_prior.predict_proba(["платье", ""])[:, 2].tolist() == [0.0, 0.25]


def test_no_texts_and_only_empty_texts(fp32: EncoderClassifier) -> None:
    assert fp32.predict_proba([]).shape == (0, 4)
    assert fp32.predict_proba(["", None]).tolist() == [PRIOR.tolist()] * 2


def test_long_text_is_cut_off_as_in_training() -> None:
    short = _classifier(precision="fp32", max_length=5)
    assert _equal(short, "чашка нож ковш платье юбка", "чашка нож ковш")
    assert not _equal(short, "чашка нож", "чашка нож платье")


def test_int8_classifier_gives_the_same_labels_and_says_how_it_was_chosen() -> None:
    classifier = _classifier()
    assert str(classifier.exported["served"]).startswith("int8")
    assert classifier.predict(TEXTS) == LABELS
    trials = classifier.exported["trials"]
    assert isinstance(trials, dict)
    assert next(iter(trials)) == "fp32"


def test_verification_ignores_classes_never_seen() -> None:
    """The network answers «мебель» to everything; without that class the labels are clear."""
    network = EncoderNetwork(tiny_network().encoder, classes=4, pooling="mean")
    network.load_state_dict(tiny_network().state_dict())
    with torch.no_grad():
        network.head.bias[2] += 1000.0
    arguments: dict[str, Any] = {"classes": CLASSES, "seen": SEEN, "prior": PRIOR, "candidate": {}}
    classifier = EncoderClassifier.from_network(
        network,
        tiny_tokenizer(),
        texts=TEXTS,
        max_length=64,
        **arguments,
    )
    trial = classifier.exported["trials"]["int8"]  # type: ignore[index, call-overload]
    assert trial["largest_difference"] > 1e-6  # type: ignore[index, call-overload]
    assert classifier.predict(TEXTS) == LABELS
    assert classifier.temperature == 1.0


@pytest.mark.parametrize("name", ["e5-small-ru", "rubert-tiny2-architecture"])
def test_tokens_are_those_of_transformers_on_real_reviews(shared_data: Path, name: str) -> None:
    folder = shared_data.parent / "models" / name
    if not folder.exists():
        pytest.skip(f"{name} is not here: put it into ../shared/models")
    texts = pd.read_csv(shared_data / "reviews.csv")["text"].tolist()[:500]
    theirs = AutoTokenizer.from_pretrained(folder)
    reader = TextReader.of(theirs, max_length=24)
    expected = theirs(texts, truncation=True, max_length=24)["input_ids"]
    assert reader.pad_id == theirs.pad_token_id
    for rows, inputs in reader.batches(texts):
        for row, ids, mask in zip(rows, inputs["input_ids"], inputs["attention_mask"], strict=True):
            assert ids[: mask.sum()].tolist() == expected[row]


def test_tokenizer_without_a_fast_form_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"has no tokenizer\.json"):
        TextReader.of(object(), max_length=64)


def test_threads_are_bounded() -> None:
    assert 1 <= default_threads() <= 4


# -- calibration -------------------------------------------------------------------------------------------------------


def test_temperature_undoes_a_scaling_of_the_logits() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 4)) * 2
    labels = np.array([generator.choice(4, p=row) for row in softmax(logits)])
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.05)
    assert fit_temperature(logits * 5, labels) == pytest.approx(5.0, abs=0.25)
    assert fit_temperature(logits * 0.5 + 1000.0, labels) == pytest.approx(0.5, abs=0.03)


def test_temperature_without_rows_and_on_rows_all_right() -> None:
    assert fit_temperature(np.empty((0, 3)), np.empty(0, dtype=np.int64)) == 1.0
    assert fit_temperature(np.eye(3) * 9, np.arange(3)) < 0.3


def test_validation_rows_calibrate(fp32: EncoderClassifier) -> None:
    assert fp32.validation_probabilities is not None
    assert np.allclose(fp32.validation_probabilities, fp32.predict_proba(VALIDATION), atol=1e-4)
    wrong = ["посуда" if label == "одежда" else "одежда" for label in VALIDATION_LABELS]
    unsure = _classifier(precision="fp32", labels=wrong)
    assert unsure.temperature > 5 > fp32.temperature
    foreign = _classifier(precision="fp32", labels=["мебель"] * len(VALIDATION))
    assert foreign.temperature == 1.0
    assert foreign.predict(["платье"], abstain=True) == ["не уверен"]


def test_abstaining_is_off_unless_asked_for(fp32: EncoderClassifier) -> None:
    classifier = _classifier(precision="fp32")
    classifier.abstain = {"одежда": 1.01, "посуда": 0.0}
    assert classifier.predict(["платье юбка", "чашка нож", "доставка"]) == ["одежда", "посуда", "нет товара"]
    assert classifier.predict(["платье юбка", "чашка нож", "доставка"], abstain=True) == [
        "не уверен",
        "посуда",
        "нет товара",
    ]


def test_abstain_threshold_is_the_smallest_that_reaches_the_target() -> None:
    sure = [0.99, 0.9, 0.8, 0.7, 0.6]
    probabilities = np.array([[value, 1 - value] for value in sure] + [[0.2, 0.8], [0.4, 0.6]])
    labels = ["а", "а", "б", "а", "б", "б", "а"]
    found = abstain_thresholds(probabilities, labels, ["а", "б"], target=0.75)
    assert found == {"а": 0.7, "б": 0.8}
    assert abstain_thresholds(probabilities, labels, ["а", "б"], target=1.0) == {"а": 0.9, "б": 0.8}
    assert abstain_thresholds(probabilities[:5], ["б"] * 5, ["а", "б"]) == {"а": 1.0}
    tied = np.array([[0.9, 0.1]] * 4)
    assert abstain_thresholds(tied, ["а", "а", "а", "б"], ["а", "б"], target=0.8) == {"а": 1.0}
    assert abstain_thresholds(np.empty((0, 2)), [], ["а", "б"]) == {}


# -- files -------------------------------------------------------------------------------------------------------------


def test_saved_classifier_answers_as_before(fp32: EncoderClassifier, saved: Path) -> None:
    loaded = load_model(saved)
    assert isinstance(loaded, EncoderClassifier)
    texts = ["Платье село", "чашка", "", None, *TEXTS]
    assert np.array_equal(loaded.predict_proba(texts), fp32.predict_proba(texts))
    assert (loaded.classes, loaded.chosen, loaded.temperature) == (fp32.classes, fp32.chosen, fp32.temperature)
    assert (loaded.abstain, loaded.exported) == (fp32.abstain, fp32.exported)
    assert loaded.validation_probabilities is None


def test_network_is_saved_along_and_survives_saving_again(saved: Path, tmp_path: Path) -> None:
    load_model(saved).save(tmp_path / "again")
    network = EncoderNetwork.load(tmp_path / "again" / "torch")
    assert np.allclose(torch_logits(network, TEXTS[:3]), torch_logits(tiny_network(), TEXTS[:3]))
    load_model(tmp_path / "again").save(tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "torch")
    assert load_model(tmp_path / "again").predict_proba(["чашка"]).shape == (1, 4)


def test_folder_says_what_it_is_and_holds_no_pickle(saved: Path) -> None:
    names = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    served = {"model.json", "model.onnx", "tokenizer.json"}
    assert names == served | {"torch/config.json", "torch/head.json", "torch/model.safetensors"}
    card = json.loads((saved / "model.json").read_text(encoding="utf-8"))
    assert (card["kind"], card["classes"], card["candidate"]) == ("encoder", CLASSES, {"name": "tiny"})
    assert set(card["versions"]) == {"numpy", "onnxruntime", "tokenizers"}
    assert card["extra"]["exported"]["trials"]["fp32"]["agreement"] == 1.0


def test_serving_needs_neither_torch_nor_transformers(saved: Path, fp32: EncoderClassifier) -> None:
    script = """
import json, sys
for name in ("torch", "transformers", "onnx", "sklearn", "safetensors", "mlflow"):
    sys.modules[name] = None
from reviewclf.training.model import load_model
print(json.dumps(load_model(sys.argv[1]).predict_proba(["чашка", "платье", ""]).tolist()))
"""
    ran = subprocess.run([sys.executable, "-c", script, str(saved)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert np.allclose(json.loads(ran.stdout), fp32.predict_proba(["чашка", "платье", ""]), atol=1e-6)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_damaged_and_missing_files_are_refused_by_name(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content in (b"", b"no model", whole[: len(whole) // 2], bytes(changed)):
        path.write_bytes(content)
        with pytest.raises(RegistryError, match=rf"{name}: is damaged"):
            load_model(folder)
    path.unlink()
    with pytest.raises(RegistryError, match=rf"{name}: cannot be read"):
        load_model(folder)


def _replace(folder: Path, name: str, content: bytes) -> None:
    """Put in another file as somebody does who also knows about the digest."""
    (folder / name).write_bytes(content)
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    card["extra"]["files"]["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")


def _foreign_model(output: str = "float", width: int = 4) -> bytes:
    weight = numpy_helper.from_array(np.ones((1, width), dtype=np.float32), "w")
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["c"], ["s"], keepdims=1),
        helper.make_node("MatMul", ["s", "w"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in ("input_ids", "attention_mask")]
    inputs = inputs if output == "float" else inputs[:1]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, width])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_replaced_files_are_refused_even_with_a_matching_digest(folder: Path) -> None:
    original = (folder / "model.onnx").read_bytes()
    for content, said in (
        (b"no model", r"model\.onnx: is no model that ONNX Runtime reads"),
        (original[: len(original) // 2], r"model\.onnx: is no model that ONNX Runtime reads"),
        (_foreign_model(output="other"), r"model\.onnx: is no encoder"),
        (_foreign_model(width=3), "3 outputs for 4 classes"),
    ):
        _replace(folder, "model.onnx", content)
        with pytest.raises(RegistryError, match=said):
            load_model(folder)
    _replace(folder, "model.onnx", original)
    assert load_model(folder).predict_proba(["чашка"]).shape == (1, 4)
    for content in (b"{}", b"\xff\xfe"):
        _replace(folder, "tokenizer.json", content)
        with pytest.raises(RegistryError, match=r"tokenizer\.json: is no tokenizer"):
            load_model(folder)


@pytest.mark.parametrize("place", ["weights.bin", "../weights.bin", "/etc/passwd"])
def test_model_with_weights_in_another_file_is_refused(folder: Path, place: str) -> None:
    model = onnx.load(folder / "model.onnx")
    big = max(model.graph.initializer, key=lambda item: len(item.raw_data))
    (folder / "weights.bin").write_bytes(big.raw_data)
    (folder.parent / "weights.bin").write_bytes(big.raw_data)
    big.ClearField("raw_data")
    big.data_location = TensorProto.EXTERNAL
    big.external_data.add(key="location", value=place)
    _replace(folder, "model.onnx", model.SerializeToString())
    with pytest.raises(RegistryError, match=r"model\.onnx: refers to weights in other files"):
        load_model(folder)


def test_card_that_does_not_fit_is_refused(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    for change in (
        {"classes": CLASSES[:3]},
        {"classes": [*CLASSES, "ещё"]},
        {"extra": {}},
        *(
            {"extra": {**card["extra"], **change}}
            for change in (
                {"seen": []},
                {"seen": [0, 9]},
                {"seen": [-1]},
                {"seen": "x"},
                {"prior": [1.0]},
                {"prior": [1.0, 1.0, 1.0, 1.0]},
                {"temperature": 0.0},
                {"temperature": "x"},
                {"abstain": {"одежда": "x"}},
                {"exported": 3},
                {"files": {}},
                {"files": {**card["extra"]["files"], "max_length": 0}},
            )
        ),
    ):
        (folder / "model.json").write_text(json.dumps({**card, **change}), encoding="utf-8")
        with pytest.raises(RegistryError, match="train"):
            load_model(folder)


def test_8_bit_model_on_a_processor_without_vnni_is_announced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    for exact, served, seven_bits, warned in (
        (False, "int8", False, True),
        (True, "int8", False, False),
        (False, "int8-split", True, False),
        (False, "fp32", False, False),
    ):
        card["extra"]["exported"].update(served=served, seven_bits=seven_bits)
        (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")
        monkeypatch.setattr(onnx_session, "multiplies_int8_exactly", lambda exact=exact: exact)
        caplog.clear()
        load_model(folder)
        assert ("VNNI" in caplog.text) is warned


def test_session_of_no_model_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^model\.onnx"):
        OnnxEncoder(b"", TextReader.of(tiny_tokenizer(), max_length=8))
