"""A pretrained encoder left as it is, and a linear classifier of its states: minutes of work without a GPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt

from reviewclf.training.candidates import Candidate, ClassWeightPower, Strict
from reviewclf.training.checkpoints import Pooling, load_checkpoint, resolve_checkpoint
from reviewclf.training.encoder_classifier import OnnxClassifier
from reviewclf.training.features import FeatureSettings, TextFeatures
from reviewclf.training.linear import fit_or_warn, weighted_f1
from reviewclf.training.model import ModelCard, TextClassifier
from reviewclf.training.onnx_session import TextReader
from reviewclf.training.parts import reading
from reviewclf.training.rows import Floats, TrainingJob, TrainingRows, class_weights

logger = logging.getLogger(__name__)

_LINEAR = "linear.npz"


class FrozenEncoderParams(Strict):
    """Settings of a linear classifier of encoder states."""

    checkpoint: Annotated[str, Field(min_length=1, description="name on the hub, or of a folder of REVIEWCLF_ENCODERS")]
    pooling: Pooling = "mean"
    prefix: str = Field("", description="put before each text, as some checkpoints were trained: `query: `")
    max_length: PositiveInt = Field(128, description="tokens after which a text is cut off")
    C: Annotated[list[PositiveFloat], Field(min_length=1, max_length=20)] = Field(
        [300.0, 100.0, 30.0, 1000.0],
        description="inverse strengths of regularisation; the best on validation is taken, the earlier one on ties",
    )
    class_weight_power: ClassWeightPower = 0.5
    standardise: bool = Field(False, description="each dimension of the states to mean 0 and deviation 1")
    stem_weight: NonNegativeFloat = Field(0.5, description="scale of the features from the taxonomy's keyword stems; 0: none")
    precision: Literal["auto", "fp32", "int8"] = Field("auto", description="of the served encoder; auto: int8 if it agrees")
    max_iter: PositiveInt = 2000


class FrozenEncoderClassifier(OnnxClassifier):
    """Encoder states and one matrix.

    Parameters
    ----------
    prefix : str
        Put before each text.
    stems : mapping of str to list of str
        Keyword stems by category.
    stem_weight : float
        Scale of their features; 0: none.
    weights : array, shape (width + stem features, number of seen classes)
    bias : array, shape (number of seen classes,)
    **common
        See :class:`reviewclf.training.encoder_classifier.OnnxClassifier`.
    """

    kind = "frozen-encoder"
    packages = ("onnxruntime", "scipy", "tokenizers")

    def __init__(
        self, *, prefix: str, stems: Mapping[str, list[str]], stem_weight: float, weights: Floats, bias: Floats, **common: Any
    ) -> None:
        super().__init__(**common)
        self._prefix, self._weights, self._bias = prefix, weights, bias
        self._stem_features = TextFeatures(FeatureSettings(stem_weight=stem_weight), stems)

    def logits(self, texts: Sequence[str]) -> Floats:
        """See :class:`reviewclf.training.encoder_classifier.OnnxClassifier`."""
        states = self._encoder([self._prefix + text for text in texts])
        return _with_stems(states, self._stem_features, texts) @ self._weights + self._bias

    def write_parts(self, folder: Path) -> dict[str, JsonValue]:
        """Write ``linear.npz`` too."""
        np.savez(folder / _LINEAR, weights=self._weights, bias=self._bias)
        features = self._stem_features
        own: dict[str, Any] = {"prefix": self._prefix, "stem_weight": features.settings.stem_weight, "stems": features.stems}
        return {**super().write_parts(folder), **own}

    @classmethod
    def read_parts(cls, folder: Path, card: ModelCard, threads: int | None) -> dict[str, Any]:
        """Read ``linear.npz`` too; it holds numbers and nothing else."""
        path = folder / _LINEAR
        with reading(path), np.load(path, allow_pickle=False) as arrays:
            linear = {name: arrays[name] for name in ("weights", "bias")}
        own = {name: card.extra[name] for name in ("prefix", "stem_weight", "stems")}
        return {**linear, **own, **super().read_parts(folder, card, threads)}


class FrozenEncoderCandidate(Candidate):
    """A linear classifier of the states of a pretrained encoder."""

    params: FrozenEncoderParams

    @classmethod
    def classifier(cls) -> type[TextClassifier]:
        """See :class:`reviewclf.training.candidates.Candidate`."""
        return FrozenEncoderClassifier

    def check_available(self, encoders: Path | None) -> None:
        """Whether the checkpoint is to be had."""
        resolve_checkpoint(self.params.checkpoint, encoders)

    def train(self, job: TrainingJob) -> TextClassifier:
        """Fit the linear layer, choose C and calibrate on validation; the encoder is exported as it is."""
        from reviewclf.training.encoder_network import EncoderNetwork
        from reviewclf.training.onnx_export import export, network_outputs

        params = self.params
        rows = job.training_rows(self.title)
        validation = job.validation_rows(self.title)
        body, tokenizer = load_checkpoint(resolve_checkpoint(params.checkpoint, job.encoders), self.title)
        reader = TextReader.of(tokenizer, max_length=params.max_length)
        network = EncoderNetwork(body.eval(), classes=len(rows.seen), pooling=params.pooling)
        texts = [*rows.texts, *(text for text, _ in validation)]
        prefixed = [params.prefix + text for text in texts]
        pooled = network_outputs(network, reader, prefixed, "pooled")
        stem_features = TextFeatures(FeatureSettings(stem_weight=params.stem_weight), job.stems if params.stem_weight else {})
        features = _with_stems(pooled, stem_features, texts)
        labels = [job.classes[label] for _, label in validation]
        names = [job.classes[position] for position in rows.seen]
        strength, matrix, bias = _choose(params, features, rows, labels, names, width=pooled.shape[1], seed=job.seed)

        def logits(states: Floats, places: Sequence[int]) -> Floats:
            return _with_stems(states, stem_features, [texts[place] for place in places]) @ matrix + bias

        encoder, report = export(
            network, reader, texts=prefixed, precision=params.precision, output="pooled", head=logits, expected=pooled
        )
        classifier = FrozenEncoderClassifier(
            prefix=params.prefix,
            stems=stem_features.stems,
            stem_weight=params.stem_weight,
            weights=matrix,
            bias=bias,
            encoder=encoder,
            chosen={**params.model_dump(mode="json"), "C": strength},
            exported=report.model_dump(mode="json"),
            **self.common(job, rows),
        )
        classifier.calibrate(job.validation, scale=True)
        return classifier


def _choose(
    params: FrozenEncoderParams,
    features: Floats,
    rows: TrainingRows,
    labels: list[str],
    names: Sequence[str],
    *,
    width: int,
    seed: int,
) -> tuple[float, Floats, Floats]:
    """C, matrix and bias with the best weighted F1 on the validation rows, which come last in `features`."""
    from sklearn.linear_model import LogisticRegression

    count = len(rows.target)
    target = np.searchsorted(rows.seen, rows.target)
    center, scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
    if params.standardise:
        center[:width] = features[:count, :width].mean(axis=0)
        scale[:width] = np.maximum(features[:count, :width].std(axis=0), 1e-6)
    scaled = (features - center) / scale
    weights = rows.weights * class_weights(target, rows.weights, classes=len(names), power=params.class_weight_power)[target]
    tried: list[tuple[float, float, Floats, Floats]] = []
    for strength in params.C if labels else params.C[:1]:
        estimator = LogisticRegression(C=strength, max_iter=params.max_iter, random_state=seed)
        fit_or_warn(estimator, scaled[:count], target, weights)
        matrix, bias = estimator.coef_.T, estimator.intercept_
        if len(names) == 2:  # one column that speaks for the second
            matrix, bias = np.hstack([np.zeros_like(matrix), matrix]), np.append(0.0, bias)
        predicted = [names[column] for column in (scaled[count:] @ matrix + bias).argmax(axis=1)]
        tried.append((weighted_f1(labels, predicted) if labels else 0.0, strength, matrix, bias))
    score, strength, matrix, bias = max(tried, key=lambda item: item[0])
    logger.info("weighted F1 %.3f on %d validation rows with C=%g", score, len(labels), strength)
    # The scaling goes into the matrix, so that serving needs none.
    matrix = matrix / scale[:, None]
    return strength, matrix, bias - center @ matrix


def _with_stems(states: Floats, stems: TextFeatures, texts: Sequence[str]) -> Floats:
    """States at unit length, followed by the features from keyword stems, if there are any."""
    unit = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    return np.hstack([unit, stems.transform(texts).toarray()]) if stems.has_stems else unit
