"""Fine-tuning: what is learned, which epoch is kept, what resembles plain training exactly, where checkpoints come from."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from sklearn.metrics import f1_score
from transformers import AutoModel, AutoTokenizer

from reviewclf.errors import EncoderUnavailableError, TrainingError
from reviewclf.training import checkpoints, encoder_network
from reviewclf.training.candidates import load_candidates, parse_candidate
from reviewclf.training.checkpoints import resolve_checkpoint
from reviewclf.training.encoder import EncoderCandidate
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.finetuning import TunedEncoder, fine_tune
from reviewclf.training.losses import NEVER
from reviewclf.training.rows import TrainingJob, without_light_rows
from reviewclf.training.tuner import SeededLengthGroups, Tuner, layer_rates
from tests.tiny_encoder import save_tiny_encoder

pytestmark = pytest.mark.slow

CLASSES = ["одежда", "посуда", "электроника", "нет товара"]
WORDS = {
    "одежда": ["платье", "кофта", "юбка", "ткань", "рукава"],
    "посуда": ["кружка", "сковорода", "тарелки", "крышка", "нож"],
    "нет товара": ["доставка", "продавец", "спор", "деньги", "трек"],
}
FILL = ["пришло", "очень", "быстро", "хорошо", "плохо", "как", "и", "на"]


def _rows(count: int, *, seed: int, labels: tuple[str, ...] = tuple(WORDS)) -> pd.DataFrame:
    """Reviews of 3 to 14 words, one or two of which tell the class."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = labels[number % len(labels)]
        words = [*random.choice(WORDS[label], size=2), *random.choice(FILL, size=random.integers(1, 13))]
        random.shuffle(words)
        rows.append((" ".join(words), label, 1.0))
    return pd.DataFrame(rows, columns=["text_clean", "label", "weight"])


TRAIN, VALIDATION = _rows(90, seed=1), _rows(30, seed=2)
EMPTY = VALIDATION.head(0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a network is slower with more, by far where other processes want them too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    save_tiny_encoder(folder / "tiny", [*TRAIN["text_clean"], *VALIDATION["text_clean"]])
    save_tiny_encoder(folder / "plain", TRAIN["text_clean"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return folder


def _candidate(**params: Any) -> EncoderCandidate:
    base: dict[str, Any] = {"checkpoint": "tiny", "learning_rate": 3e-3, "epochs": 4, "max_length": 64, "precision": "fp32"}
    return EncoderCandidate.model_validate({"name": "trial", "kind": "encoder", "params": {**base, **params}})


def _train(encoders: Path, train: pd.DataFrame = TRAIN, validation: pd.DataFrame = VALIDATION, **params: Any) -> TunedEncoder:
    arguments = {name: params.pop(name) for name in ("seed", "checkpoints", "on_epoch") if name in params}
    job = TrainingJob(train, validation, classes=CLASSES, encoders=encoders, **{"seed": 42, **arguments})
    candidate = _candidate(**params)
    return fine_tune(candidate.title, candidate.params, job)


def _state(trained: TunedEncoder) -> dict[str, torch.Tensor]:
    return trained.network.state_dict()


def _difference(one: TunedEncoder, other: TunedEncoder) -> float:
    first, second = _state(one), _state(other)
    assert set(first) == set(second)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def _read(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _logits(trained: TunedEncoder, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = trained.network(**_read(trained.tokenizer, texts))
    return logits


def _labels(trained: TunedEncoder, texts: list[str]) -> list[str]:
    return [CLASSES[column] for column in _logits(trained, texts).argmax(1)]


# -- what is learned and handed out ------------------------------------------------------------------------------------


def test_tells_classes_apart_and_reports_each_epoch(encoders: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    trained = _train(encoders, epochs=9, learning_rate=1e-2, on_epoch=lambda epoch, entry: told.append((epoch, entry)))
    assert _labels(trained, ["платье очень хорошо", "нож плохо", "спор и деньги"]) == ["одежда", "посуда", "нет товара"]
    assert [entry["epoch"] for entry in trained.history] == list(range(1, len(trained.history) + 1))
    assert told == [(number, entry) for number, entry in enumerate(trained.history, start=1)]
    names = {"epoch", "train_loss", "validation_loss", "weighted_f1", "macro_f1", "seconds", "learning_rate"}
    assert all(set(entry) == names for entry in trained.history)
    assert trained.history[-1]["train_loss"] < 0.5 * trained.history[0]["train_loss"]
    assert trained.history[trained.best_epoch - 1]["weighted_f1"] > 0.95
    assert trained.device == "cpu"
    assert trained.figures["samples_per_second"] > trained.figures["steps_per_second"] > 0
    assert not trained.network.training
    assert trained.rows.prior == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert trained.rows.seen == [0, 1, 3]


def test_network_is_that_of_the_best_epoch(encoders: Path) -> None:
    # Of these labels the network knows less the more it learns.
    misled = VALIDATION.assign(label=np.roll(VALIDATION["label"], 1))
    trained = _train(encoders, validation=misled, epochs=8, patience=None)
    scores = [entry["weighted_f1"] for entry in trained.history]
    assert trained.best_epoch == 1 + scores.index(max(scores))
    assert scores[-1] != max(scores), "this test needs an epoch that is worse than the best"
    predicted = _labels(trained, VALIDATION["text_clean"].tolist())
    true = misled["label"].tolist()
    assert f1_score(true, predicted, average="weighted", zero_division=0) == pytest.approx(max(scores))
    assert f1_score(true, predicted, average="macro", labels=sorted(set(true)), zero_division=0) == pytest.approx(
        trained.history[trained.best_epoch - 1]["macro_f1"]
    )


def test_validation_loss_is_plain_cross_entropy(encoders: Path) -> None:
    trained = _train(encoders, epochs=1, label_smoothing=0.3, loss="focal")
    target = torch.tensor([CLASSES.index(label) for label in VALIDATION["label"]])
    expected = torch.nn.functional.cross_entropy(_logits(trained, VALIDATION["text_clean"].tolist()), target)
    assert trained.history[0]["validation_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_equal_scores_keep_the_first_epoch_and_patience_ends_the_run(encoders: Path) -> None:
    trained = _train(encoders, learning_rate=1e-9, epochs=6, patience=2)
    assert len({entry["weighted_f1"] for entry in trained.history}) == 1
    assert (trained.best_epoch, len(trained.history)) == (1, 3)
    assert len(_train(encoders, learning_rate=1e-9, epochs=4, patience=None).history) == 4


def test_without_validation_rows_the_last_epoch_is_taken(encoders: Path) -> None:
    trained = _train(encoders, validation=EMPTY, epochs=3, patience=1)
    assert (trained.best_epoch, len(trained.history)) == (3, 3)
    assert set(trained.history[0]) == {"epoch", "train_loss", "seconds", "learning_rate"}


def test_validation_rows_without_a_text_do_not_count(encoders: Path) -> None:
    validation = pd.concat([VALIDATION, VALIDATION.head(2).assign(text_clean=["", None])], ignore_index=True)
    one, other = (_train(encoders, validation=rows, epochs=1) for rows in (VALIDATION, validation))
    assert one.history[0]["weighted_f1"] == other.history[0]["weighted_f1"]


def test_classes_without_training_rows_never_win(encoders: Path) -> None:
    logits = _logits(_train(encoders, epochs=1), VALIDATION["text_clean"].tolist())
    assert (logits[:, CLASSES.index("электроника")] == NEVER).all()
    assert torch.softmax(logits, 1)[:, 2].max() == torch.softmax(logits.half(), 1)[:, 2].max() == 0
    validation = pd.concat([VALIDATION, VALIDATION.head(3).assign(label="электроника")], ignore_index=True)
    history = _train(encoders, validation=validation, epochs=1).history
    assert math.isfinite(history[0]["validation_loss"])
    assert history[0]["macro_f1"] < history[0]["weighted_f1"]  # one class of four is always missed


def test_rows_weigh_as_sure_as_their_labels_are(encoders: Path) -> None:
    texts = ["платье", "кружка"] * 12
    right = pd.DataFrame({"text_clean": texts, "label": ["одежда", "посуда"] * 12, "weight": 1.0})
    wrong = right.assign(label=["посуда", "одежда"] * 12)
    for strong, weak, expected in ((1.0, 0.05, ["одежда", "посуда"]), (0.05, 1.0, ["посуда", "одежда"])):
        rows = pd.concat([right.assign(weight=strong), wrong.assign(weight=weak)], ignore_index=True)
        assert _labels(_train(encoders, rows, EMPTY, epochs=6), ["платье", "кружка"]) == expected


def test_rows_of_weight_zero_and_rows_without_a_text_change_nothing(encoders: Path) -> None:
    silent = pd.concat(
        [TRAIN, TRAIN.head(5).assign(weight=0.0, label="электроника"), TRAIN.head(3).assign(text_clean=["", None, " "])],
        ignore_index=True,
    )
    one, other = _train(encoders, epochs=1), _train(encoders, silent, epochs=1)
    assert _difference(one, other) == 0
    assert other.rows.seen == [0, 1, 3]


def test_light_rows_are_left_out_where_their_class_has_enough_others() -> None:
    rows = pd.DataFrame(
        {
            "label": ["обувь"] * 40 + ["посуда"] * 29 + ["обувь"] * 5 + ["посуда"] * 3 + ["одежда"] * 2,
            "weight": [0.9] * 69 + [0.06] * 10,
            "text_clean": "текст",
        }
    )
    kept = without_light_rows(rows, 0.1)
    light = kept[kept["weight"] < 0.1]
    assert light["label"].tolist() == ["посуда"] * 3 + ["одежда"] * 2
    assert len(kept) == 69 + 5
    assert without_light_rows(rows, 0.0).equals(rows)


def test_scale_of_row_weights_changes_nothing(encoders: Path) -> None:
    one, other = _train(encoders, epochs=1), _train(encoders, TRAIN.assign(weight=0.25), epochs=1)
    assert _difference(one, other) < 1e-5


def test_class_weights_lift_the_rare_class(encoders: Path) -> None:
    rare = pd.concat([TRAIN[TRAIN["label"] == "одежда"], TRAIN[TRAIN["label"] == "посуда"].head(3)], ignore_index=True)
    for loss in ("weighted_ce", "focal"):
        shares = []
        for power in (0.0, 1.0):
            trained = _train(encoders, rare, epochs=1, class_weight_power=power, loss=loss)
            logits = _logits(trained, VALIDATION["text_clean"].tolist())
            shares.append(torch.softmax(logits, 1)[:, CLASSES.index("посуда")].mean())
        assert shares[0] < 0.8 * shares[1]
    # alpha: false leaves class weights out of the focal loss
    off = _train(encoders, rare, epochs=1, loss="focal", alpha=False, class_weight_power=1.0)
    zero = _train(encoders, rare, epochs=1, loss="focal", alpha=True, class_weight_power=0.0)
    assert _difference(off, zero) == 0


# -- what resembles plain training exactly -----------------------------------------------------------------------------


def test_equal_inputs_give_an_equal_network_and_another_seed_another(encoders: Path) -> None:
    one, again, other = (_train(encoders, epochs=1, seed=seed) for seed in (1, 1, 2))
    assert _difference(one, again) == 0
    assert _difference(one, other) > 1e-4


def test_small_vocabulary_trains_as_the_full_one(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = Tuner.compute_loss

    def spy(self: Tuner, model: Any, *args: Any, **named: Any) -> Any:
        sizes.append(self.model.encoder.get_input_embeddings().num_embeddings)
        return original(self, model, *args, **named)

    monkeypatch.setattr(Tuner, "compute_loss", spy)
    small = _train(encoders, weight_decay=0.0, epochs=2)
    full_size = small.network.encoder.get_input_embeddings().num_embeddings
    assert max(sizes) <= full_size - 50  # the words that no review holds
    sizes.clear()
    monkeypatch.setattr(encoder_network, "_LARGEST_PAD_ID", -1)
    full = _train(encoders, weight_decay=0.0, epochs=2)
    assert set(sizes) == {full_size}
    assert _difference(small, full) < 1e-5
    assert small.history[-1]["train_loss"] == pytest.approx(full.history[-1]["train_loss"], rel=1e-4)
    # Words that no review holds keep what they knew, the others learned.
    name = "encoder.embeddings.word_embeddings.weight"
    before = AutoModel.from_pretrained(encoders / "tiny").state_dict()[name.removeprefix("encoder.")]
    changed = (_state(small)[name] != before).any(1)
    assert not changed[-50:].any()
    words = small.tokenizer.convert_tokens_to_ids(["платье", "кружка", "продавец"])
    assert changed[words].all()


def test_accumulated_batches_are_one_large_batch(encoders: Path) -> None:
    rows = _rows(12, seed=3).assign(weight=np.linspace(0.2, 1.0, 12))
    params: dict[str, Any] = {"checkpoint": "plain", "dropout": 0.0, "epochs": 2, "learning_rate": 1e-3}
    one = _train(encoders, rows, EMPTY, batch_size=12, gradient_accumulation=1, **params)
    for size, steps in ((4, 3), (5, 3), (1, 12)):
        parts = _train(encoders, rows, EMPTY, batch_size=size, gradient_accumulation=steps, **params)
        assert _difference(one, parts) < 1e-4
        assert parts.history[-1]["train_loss"] == pytest.approx(one.history[-1]["train_loss"], rel=1e-4)


def test_first_step_is_that_of_the_weighted_loss_itself(encoders: Path) -> None:
    rows = _rows(6, seed=4, labels=("одежда", "одежда", "посуда")).assign(weight=[1.0, 0.5, 0.2, 1.0, 0.7, 0.9])
    seen_gradients: list[torch.Tensor] = []

    class Stop(Exception):  # noqa: N818 - leaves the loop
        pass

    original = Tuner.training_step

    def spy(self: Tuner, model: Any, *args: Any, **named: Any) -> Any:
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        original(self, model, *args, **named)
        assert self.model.head.weight.grad is not None
        seen_gradients.append(self.model.head.weight.grad.clone())
        raise Stop(before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuner, "training_step", spy)
        params: dict[str, Any] = {"checkpoint": "plain", "dropout": 0.0, "batch_size": 6, "gradient_accumulation": 1}
        with pytest.raises(Stop) as caught:
            _train(encoders, rows, EMPTY, class_weight_power=1.0, **params)
    body = AutoModel.from_pretrained(encoders / "plain", dtype=torch.float32)
    network = EncoderNetwork(body, classes=4, pooling="mean", dropout=0.0)
    state = caught.value.args[0]
    network.head.load_state_dict({"weight": state["head.weight"], "bias": state["head.bias"]})
    tokenizer = AutoTokenizer.from_pretrained(encoders / "plain")
    confidence = torch.tensor(rows["weight"].to_numpy(), dtype=torch.float32)
    target = torch.tensor([CLASSES.index(label) for label in rows["label"]])
    totals = [float(confidence[target == column].sum()) for column in (0, 1)]
    by_class = torch.tensor([sum(totals) / (2 * total) for total in totals])
    weights = confidence * by_class[target]
    logits = network(**_read(tokenizer, rows["text_clean"].tolist()))[:, :2]
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    ((losses * weights).sum() / weights.sum()).backward()
    assert network.head.weight.grad is not None
    assert seen_gradients[0] == pytest.approx(network.head.weight.grad, abs=1e-6)


def test_gradient_checkpointing_changes_memory_alone(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = transformers.PreTrainedModel.gradient_checkpointing_enable

    def spy(self: Any, *args: Any, **named: Any) -> None:
        calls.append(self)
        original(self, *args, **named)

    monkeypatch.setattr(transformers.PreTrainedModel, "gradient_checkpointing_enable", spy)
    off, small = (_train(encoders, epochs=1, gradient_checkpointing=mode) for mode in ("off", "auto"))
    assert calls == []
    on = _train(encoders, epochs=1, gradient_checkpointing="on")
    assert len(calls) == 1
    assert _difference(off, on) < 1e-6
    assert _difference(off, small) == 0
    assert not any(getattr(module, "gradient_checkpointing", False) for module in on.network.modules())


def test_rdrop_brings_two_passes_closer(encoders: Path) -> None:
    plain, dropped = (_train(encoders, epochs=3, rdrop=alpha, dropout=0.3, patience=None) for alpha in (0.0, 8.0))

    def spread(trained: TunedEncoder) -> float:
        torch.manual_seed(0)
        trained.network.train()
        passes = torch.stack([torch.softmax(_logits(trained, VALIDATION["text_clean"].tolist()), 1) for _ in range(8)])
        return float(passes.std(0).mean())

    assert spread(dropped) < 0.8 * spread(plain)


def test_mixed_precision_leaves_a_plain_network(encoders: Path) -> None:
    half, full = (_train(encoders, epochs=3, precision=precision) for precision in ("bf16", "fp32"))
    assert {tensor.dtype for tensor in _state(half).values()} == {torch.float32}
    assert "forward" not in vars(half.network)
    assert _difference(half, full) > 0
    assert half.history[-1]["train_loss"] == pytest.approx(full.history[-1]["train_loss"], rel=0.1)
    # A full-precision run afterwards, in the same process, is one.
    assert _difference(full, _train(encoders, epochs=3, precision="fp32")) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides for itself")
@pytest.mark.parametrize(("capable", "precision"), [(True, "bf16"), (False, "fp32")])
def test_processor_decides_the_precision(
    encoders: Path, monkeypatch: pytest.MonkeyPatch, capable: bool, precision: str
) -> None:
    from reviewclf.training import trainer_arguments

    monkeypatch.setattr(trainer_arguments, "_cpu_has_bf16", lambda: capable)
    assert _difference(_train(encoders, epochs=1, precision="auto"), _train(encoders, epochs=1, precision=precision)) == 0


def test_layers_below_learn_more_slowly(encoders: Path) -> None:
    trained = _train(encoders, epochs=1, layer_decay=0.1, learning_rate=1e-3, weight_decay=0.0)
    flat = _train(encoders, epochs=1, learning_rate=1e-3, weight_decay=0.0)
    before = AutoModel.from_pretrained(encoders / "tiny").state_dict()

    def moved(result: TunedEncoder, name: str) -> float:
        return float((_state(result)[f"encoder.{name}"] - before[name]).abs().mean())

    lower, upper = (f"encoder.layer.{number}.output.dense.weight" for number in (0, 1))
    positions = "embeddings.token_type_embeddings.weight"
    assert moved(trained, upper) / moved(flat, upper) == pytest.approx(0.1, rel=0.5)
    assert moved(trained, lower) / moved(flat, lower) == pytest.approx(0.01, rel=0.5)
    assert moved(trained, positions) / moved(flat, positions) == pytest.approx(0.001, rel=0.5)
    # What a GPU or a schedule reports is the rate of the head.
    assert trained.history[0]["learning_rate"] == flat.history[0]["learning_rate"]


def test_layer_rates_of_common_encoders() -> None:
    bert = ["encoder.embeddings.word_embeddings.weight", "encoder.encoder.layer.0.x", "encoder.encoder.layer.11.x", "head.bias"]
    assert list(layer_rates(bert, 0.5).values()) == [0.5**13, 0.5**12, 0.5, 1.0]
    modern = [
        "encoder.embeddings.tok_embeddings.weight",
        "encoder.layers.0.attn.Wo",
        "encoder.layers.1.x",
        "encoder.final_norm.w",
    ]
    assert list(layer_rates(modern, 0.5).values()) == [0.125, 0.25, 0.5, 1.0]
    assert set(layer_rates([*bert, *modern], 1.0).values()) == {1.0}
    assert layer_rates(["head.weight"], 0.5) == {"head.weight": 1.0}


def test_schedule_warms_up_and_goes_down(encoders: Path) -> None:
    rates: list[float] = []
    original = Tuner.training_step

    def spy(self: Tuner, *args: Any, **named: Any) -> Any:
        rates.append(max(group["lr"] for group in self.optimizer.param_groups))
        return original(self, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuner, "training_step", spy)
        _train(encoders, epochs=5, patience=None, warmup_ratio=0.2, gradient_accumulation=1, batch_size=9)
    assert len(rates) == 50
    peak = rates.index(max(rates))
    assert (rates[0], peak) == (0.0, 10)
    assert max(rates) == pytest.approx(3e-3)
    assert np.diff(rates[peak:]) == pytest.approx(-3e-3 / 40)


# -- order and batches -------------------------------------------------------------------------------------------------


def test_batches_hold_rows_of_similar_length_in_an_order_of_their_own_each_epoch() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, size=804)
    sampler = SeededLengthGroups(8, lengths.tolist(), seed=1)
    first = list(sampler)
    assert first == list(sampler)
    assert sorted(first) == list(range(804))
    batches = [lengths[first[start : start + 8]] for start in range(0, 804, 8)]
    assert [len(batch) for batch in batches] == [8] * 100 + [4]
    padded = sum(batch.max() * len(batch) for batch in batches)
    assert padded < 1.1 * lengths.sum() < 0.6 * 128 * 804
    means = [batch.mean() for batch in batches]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # not from long to short
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    together = [{frozenset(order[start : start + 8]) for start in range(0, 800, 8)} for order in (first, second)]
    assert len(together[0] & together[1]) < 5
    assert list(SeededLengthGroups(8, lengths.tolist(), seed=2)) != first


def test_batches_are_padded_to_their_longest_review_only(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    original = Tuner.compute_loss

    def spy(self: Tuner, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
        shapes.append(inputs["input_ids"].shape)
        assert inputs["attention_mask"].sum(1).max() == inputs["input_ids"].shape[1]
        return original(self, model, inputs, *args, **named)

    monkeypatch.setattr(Tuner, "compute_loss", spy)
    _train(encoders, epochs=1)
    assert len({width for _, width in shapes}) > 3
    shapes.clear()
    _train(encoders, epochs=1, max_length=6)
    assert max(width for _, width in shapes) == 6


# -- where checkpoints come from ---------------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a hub at an address where nothing listens."""
    from huggingface_hub import constants, hf_api

    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for module in (constants, hf_api):
        monkeypatch.setattr(module, "ENDPOINT", "http://127.0.0.1:9", raising=False)
    return cache


@pytest.mark.parametrize("place", ["org/tiny", "tiny", "org--tiny"])
def test_local_folders_stand_in_for_the_hub(encoders: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).symlink_to(encoders / "tiny")
    assert resolve_checkpoint("org/tiny", tmp_path) == tmp_path / place


def test_missing_encoder_is_told_at_once_and_with_the_way_to_get_it(no_hub: Path, tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(EncoderUnavailableError) as caught:
        resolve_checkpoint("cointegrated/rubert-tiny2", tmp_path)
    assert time.perf_counter() - started < 10
    for part in ("cointegrated/rubert-tiny2", str(tmp_path), "hf download cointegrated/rubert-tiny2", "REVIEWCLF_ENCODERS"):
        assert part in str(caught.value)
    assert isinstance(caught.value, TrainingError)


def test_offline_the_hub_is_not_even_asked(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(EncoderUnavailableError, match="HF_HUB_OFFLINE is set"):
        resolve_checkpoint("cointegrated/rubert-tiny2", None)


def test_encoder_in_the_cache_of_the_hub_is_found_without_a_network(no_hub: Path, encoders: Path) -> None:
    repository = no_hub / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "abc").symlink_to(encoders / "tiny")
    assert resolve_checkpoint("org/tiny", None) == repository / "snapshots" / "abc"


def test_encoder_that_the_hub_has_is_left_to_transformers(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: object())
    assert resolve_checkpoint("org/tiny", None) == "org/tiny"


def test_folder_without_weights_is_named(encoders: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_bytes((encoders / "tiny" / "config.json").read_bytes())
    with pytest.raises(EncoderUnavailableError, match=rf"{tmp_path / 'tiny'}: holds no config.json with model.safetensors"):
        _train(tmp_path, epochs=1)


def test_damaged_weights_and_weights_of_another_encoder_are_refused(encoders: Path, tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "tiny", TRAIN["text_clean"])
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(TrainingError, match=rf"{folder}: no encoder can be loaded"):
        _train(tmp_path, epochs=1)
    (folder / "model.safetensors").write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(TrainingError, match=r"its weights lack 32 of the tensors"):
        _train(tmp_path, epochs=1)


@pytest.mark.parametrize("name", ["../tiny", "a/../b", "/etc", "org/tiny/more", "", "-x", "org/.."])
def test_checkpoint_is_a_name_and_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        _candidate(checkpoint=name)


# -- what cannot be trained, and what is said --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"max_length": 65}, "max_length: 65, but the encoder reads 64 tokens at most"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"learning_rate": 1e30, "validation": EMPTY}, "the loss of epoch . is nan; lower learning_rate"),
        ({"train": TRAIN.assign(label="одежда")}, "at least two classes"),
        ({"train": TRAIN.drop(columns=["weight"])}, "train has no column weight"),
        ({"validation": VALIDATION.assign(label="космос")}, "validation, row 0, column label: 'космос'"),
        ({"validation": VALIDATION.drop(columns=["label"])}, "validation has no column label"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_its_place(encoders: Path, params: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=f"candidate trial: .*{said}"):
        _train(encoders, **params)


def test_fallback_to_the_cpu_is_said_and_nothing_else_is_printed(
    encoders: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    _train(encoders, epochs=1)
    assert f"no GPU here: fine-tuning on the CPU with {torch.get_num_threads()} threads" in caplog.text
    assert "epoch 1 of 1" in caplog.text
    assert {record.name for record in caplog.records} == {"reviewclf.training.tuner"}
    assert capfd.readouterr() == ("", "")


def test_settings_of_transformers_logging_are_put_back(encoders: Path) -> None:
    theirs: Any = transformers.utils.logging
    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    _train(encoders, epochs=1)
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before


def test_memory_that_runs_out_names_what_to_change(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Tuner, "training_step", full)
    with pytest.raises(TrainingError, match="candidate trial: cpu has too little memory; lower batch_size"):
        _train(encoders)


# -- checkpoints (a real kill is in tests/integration/test_encoder_resume.py) ------------------------------------------


class Stopped(Exception):  # noqa: N818 - stands for whatever ends a process
    pass


def _stop_in(epoch: int) -> Any:
    def on_epoch(number: int, entry: dict[str, float]) -> None:
        if number == epoch:
            raise Stopped

    return on_epoch


def test_checkpoints_leave_nothing_behind_and_change_nothing(encoders: Path, tmp_path: Path) -> None:
    plain = _train(encoders)
    kept = _train(encoders, checkpoints=tmp_path / "scratch", save_steps=2)
    assert not (tmp_path / "scratch").exists()
    assert _difference(plain, kept) == 0
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "notes.txt").write_text("of somebody else")
    _train(encoders, epochs=1, checkpoints=tmp_path / "scratch")
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["notes.txt"]


def test_checkpoints_of_another_job_are_not_taken_up(encoders: Path, tmp_path: Path) -> None:
    def start() -> None:
        with pytest.raises(Stopped):
            _train(encoders, checkpoints=tmp_path, save_steps=2, on_epoch=_stop_in(3))
        assert list(tmp_path.glob("job-*/checkpoint-*"))

    def epochs(**changed: Any) -> list[int]:
        told: list[int] = []
        _train(encoders, checkpoints=tmp_path, on_epoch=lambda number, _: told.append(number), **changed)
        return told

    start()
    assert epochs(save_steps=7) == [3, 4]  # when it saves is no difference
    changed = TRAIN.assign(label=[*TRAIN["label"][1:], "одежда"])
    for difference in (
        {"seed": 1},
        {"learning_rate": 1e-3},
        {"train": changed},
        {"train": TRAIN.assign(weight=[0.5, *TRAIN["weight"][1:]])},
        {"validation": VALIDATION.head(20)},
    ):
        start()
        assert epochs(**difference)[0] == 1, difference


def test_damaged_checkpoints_are_passed_over(encoders: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        _train(encoders, checkpoints=tmp_path, on_epoch=_stop_in(3))
    told: list[int] = []
    for name in ("optimizer.pt", "trainer_state.json"):
        for damaged in tmp_path.glob(f"job-*/checkpoint-*/{name}"):
            damaged.write_bytes(damaged.read_bytes()[:-100])
    trained = _train(encoders, checkpoints=tmp_path, on_epoch=lambda number, _: told.append(number))
    assert told == [1, 2, 3, 4]
    assert _difference(trained, _train(encoders)) == 0


def test_what_is_read_back_of_the_scratch_runs_no_code(encoders: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        _train(encoders, checkpoints=tmp_path, on_epoch=_stop_in(3))
    read = [path for name in ("optimizer.pt", "scheduler.pt") for path in tmp_path.glob(f"job-*/checkpoint-*/{name}")]
    assert len(read) >= 2
    for path in read:
        torch.load(path, weights_only=True)


# -- the candidates file -----------------------------------------------------------------------------------------------


def test_candidates_file_needs_a_checkpoint_alone(tmp_path: Path) -> None:
    path = tmp_path / "candidates.yaml"
    path.write_text("candidates: [{name: tiny2, kind: encoder, params: {checkpoint: cointegrated/rubert-tiny2}}]")
    (candidate,) = load_candidates(path)
    assert isinstance(candidate, EncoderCandidate)
    params = candidate.params
    notebook = (params.learning_rate, params.batch_size, params.gradient_accumulation, params.epochs, params.weight_decay)
    assert notebook == (2e-5, 8, 2, 7, 0.01)
    assert (params.warmup_ratio, params.scheduler, params.loss, params.max_length) == (0.1, "linear", "weighted_ce", 128)
    assert parse_candidate(candidate.model_dump(mode="json")) == candidate
    for wrong, said in (("loss: hinge", "params.loss"), ("layer_decay: 0", "params.layer_decay"), ("tempo: 1", "params.tempo")):
        path.write_text(f"candidates: [{{name: a, kind: encoder, params: {{checkpoint: x, {wrong}}}}}]")
        with pytest.raises(TrainingError, match=f"candidate 1 \\(a\\): {said}"):
            load_candidates(path)


def test_looking_for_a_checkpoint_needs_no_torch() -> None:
    names = vars(checkpoints)
    assert not {"torch", "transformers", "Tuner"} & set(names)


def test_search_ends_with_the_network_of_its_best_trial(encoders: Path, tmp_path: Path) -> None:
    candidate = _candidate(epochs=2, search={"trials": 2, "space": {"learning_rate": [1e-6, 0.005]}})
    job = TrainingJob(TRAIN, VALIDATION, classes=CLASSES, encoders=encoders, checkpoints=tmp_path / "scratch")
    classifier = candidate.train(job)
    best = max(classifier.trials, key=lambda trial: trial["weighted_f1"])
    assert classifier.chosen["learning_rate"] == best["learning_rate"]
    assert max(entry["weighted_f1"] for entry in classifier.history) == best["weighted_f1"]
    assert not any((tmp_path / "scratch").rglob("*.safetensors"))
