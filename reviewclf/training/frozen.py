"""A pretrained encoder left as it is, and a linear classifier of its states: minutes of work without a GPU."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from reviewclf.errors import RegistryError
from reviewclf.training.candidates import FrozenEncoderParams
from reviewclf.training.encoder_classifier import OnnxClassifier, fast_tokenizer
from reviewclf.training.model import ModelCard
from reviewclf.training.onnx_session import MODEL, Floats, OnnxEncoder, encoder_text

if TYPE_CHECKING:
    from reviewclf.training.candidates import CandidateBase

logger = logging.getLogger(__name__)

Integers = NDArray[np.int64]

_LINEAR = "linear.npz"


class FrozenEncoderClassifier(OnnxClassifier):
    """Encoder states and one matrix; see :class:`reviewclf.training.encoder_classifier.OnnxClassifier`.

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
    """

    kind = "frozen-encoder"

    def __init__(
        self,
        *,
        prefix: str,
        stems: Mapping[str, list[str]],
        stem_weight: float,
        weights: Floats,
        bias: Floats,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self._prefix = prefix
        self._stems = {category: list(items) for category, items in stems.items()} if stem_weight else {}
        self._stem_weight = stem_weight
        self._weights = weights
        self._bias = bias
        self._stem_features = _StemFeatures(self._stems, stem_weight)

    def _logits(self, texts: Sequence[str]) -> Floats:
        states = unit_length(self._encoder([self._prefix + text for text in texts]))
        features = np.hstack([states, self._stem_features(texts)])
        return features @ self._weights + self._bias

    def _save_parts(self, folder: Path) -> dict[str, JsonValue]:
        np.savez(folder / _LINEAR, weights=self._weights, bias=self._bias)
        return {
            "prefix": self._prefix,
            "stem_weight": self._stem_weight,
            "stems": {name: list(items) for name, items in self._stems.items()},
        }

    @classmethod
    def load(cls, folder: Path, card: ModelCard, *, threads: int | None = None) -> FrozenEncoderClassifier:
        """Read what :meth:`save` wrote; `threads` as in :func:`reviewclf.training.model.load_model`.

        Raises
        ------
        RegistryError
            A file is missing, damaged or was replaced, or does not fit ``model.json``.
        """
        path = folder / _LINEAR
        try:
            with np.load(path, allow_pickle=False) as arrays:
                weights, bias = arrays["weights"], arrays["bias"]
        except FileNotFoundError as error:
            raise RegistryError(f"{path}: cannot be read ({error.strerror}); give the folder of a saved classifier") from error
        except Exception as error:  # whatever a damaged archive makes its reader raise
            raise RegistryError(f"{path}: is damaged ({error!r:.200}); train the classifier anew") from error
        if not weights.dtype == bias.dtype == np.float64 or weights.ndim != 2 or bias.shape != weights.shape[1:]:
            raise RegistryError(
                f"{path}: holds weights {weights.dtype} {weights.shape} and bias {bias.dtype} {bias.shape}, which fit no "
                "classifier; train the classifier anew"
            )
        try:
            loaded = cls(
                prefix=str(card.extra["prefix"]),
                stems=card.extra["stems"],  # type: ignore[arg-type]
                stem_weight=float(card.extra["stem_weight"]),  # type: ignore[arg-type]
                weights=weights,
                bias=bias,
                **cls._arguments(folder, card, threads),
            )
            loaded._check(folder)
        except (ValidationError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise RegistryError(
                f"{folder}: its files do not fit together ({error!r:.200}); train the classifier anew"
            ) from error
        return loaded


def train_frozen(
    candidate: CandidateBase,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    *,
    classes: Sequence[str],
    stems: Mapping[str, list[str]] | None = None,
    seed: int,
    checkpoint: Path | str,
) -> FrozenEncoderClassifier:
    """Train a linear classifier of the states of an encoder.

    Parameters
    ----------
    candidate : CandidateBase
        With ``params``: :class:`FrozenEncoderParams`.
    train, validation : DataFrame
        Columns ``text_clean``, ``label`` and ``weight``. Training rows of weight 0 or without a text are left out. `validation`
        may be empty; it chooses C and calibrates. Its weights are not used.
    classes : sequence of str, length k
        All categories; those without a training row get probability 0.
    stems : mapping of str to list of str, optional
        Keyword stems by category, for candidates with a ``stem_weight``.
    seed : int
        Of all randomness.
    checkpoint : Path or str
        Name on the hub, or folder of the encoder: ``config.json``, weights, ``tokenizer.json``.

    Raises
    ------
    TrainingError
        The rows cannot be trained on, or the encoder cannot be loaded or exported.
    """
    from reviewclf.training.encoder import load_checkpoint
    from reviewclf.training.encoder_network import EncoderNetwork
    from reviewclf.training.linear import _check_columns, _training_rows
    from reviewclf.training.onnx_export import export, network_outputs

    params: FrozenEncoderParams = candidate.params  # type: ignore[attr-defined]
    title = f"candidate {candidate.name}"
    _, target, weights = _training_rows(title, train, classes)
    given = zip(map(encoder_text, train["text_clean"]), pd.to_numeric(train["weight"]), strict=True)
    texts = [text for text, weight in given if text and weight > 0]
    _check_columns(title, "validation", validation)
    held_out = [(encoder_text(text), label) for text, label in zip(validation["text_clean"], validation["label"], strict=True)]
    held_out = [(text, label) for text, label in held_out if text]
    seen, encoded = np.unique(target, return_inverse=True)
    names = [classes[position] for position in seen]

    body, tokenizer = load_checkpoint(checkpoint, title)
    content, pad_id = fast_tokenizer(tokenizer)
    network = EncoderNetwork(body.eval(), classes=len(seen), pooling=params.pooling)
    everything = [*texts, *(text for text, _ in held_out)]
    prefixed = [params.prefix + text for text in everything]
    settings: dict[str, Any] = {"tokenizer": content, "pad_id": pad_id, "max_length": params.max_length, "output": "pooled"}
    pooled = network_outputs(network, prefixed, **settings)
    used_stems = dict(stems or {}) if params.stem_weight else {}
    stem_block = _StemFeatures(used_stems, params.stem_weight)(everything)
    features = np.hstack([unit_length(pooled), stem_block])
    strength, matrix, bias = _choose(params, features, encoded, weights, held_out, names, width=pooled.shape[1], seed=seed)

    def logits(states: Floats, rows: Sequence[int]) -> Floats:
        return np.hstack([unit_length(states), stem_block[rows]]) @ matrix + bias

    with tempfile.TemporaryDirectory(prefix="reviewclf-export-") as scratch:
        report = export(
            network, Path(scratch), texts=prefixed, precision=params.precision, head=logits, expected=pooled, **settings
        )
        model = (Path(scratch) / MODEL).read_bytes()
    classifier = FrozenEncoderClassifier(
        prefix=params.prefix,
        stems=used_stems,
        stem_weight=params.stem_weight,
        weights=matrix,
        bias=bias,
        encoder=OnnxEncoder(model, content, pad_id=pad_id, max_length=params.max_length),
        classes=classes,
        seen=seen.tolist(),
        prior=np.bincount(target, weights=weights, minlength=len(classes)) / weights.sum(),
        candidate=candidate.model_dump(mode="json"),
        chosen={**params.model_dump(mode="json"), "C": strength},
        exported=report.model_dump(mode="json"),
    )
    if held_out:
        classifier.calibrate(classifier._logits([text for text, _ in held_out]), [label for _, label in held_out])
    classifier.validation_probabilities = classifier.predict_proba(validation["text_clean"].tolist())
    return classifier


def _choose(
    params: FrozenEncoderParams,
    features: Floats,
    target: Integers,
    weights: Floats,
    held_out: Sequence[tuple[str, str]],
    names: Sequence[str],
    *,
    width: int,
    seed: int,
) -> tuple[float, Floats, Floats]:
    """C, matrix and bias with the best weighted F1 on the held-out rows, which come last in `features`."""
    from sklearn.metrics import f1_score

    rows = len(target)
    center, scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
    if params.standardise:
        center[:width] = features[:rows, :width].mean(axis=0)
        scale[:width] = np.maximum(features[:rows, :width].std(axis=0), 1e-6)
    scaled = (features - center) / scale
    labels = [label for _, label in held_out]
    best: tuple[float, float, Floats, Floats] | None = None
    for strength in params.C if labels else params.C[:1]:
        matrix, bias = _fit(params, strength, scaled[:rows], target, weights, seed=seed)
        predicted = [names[column] for column in (scaled[rows:] @ matrix + bias).argmax(axis=1)]
        score = float(f1_score(labels, predicted, average="weighted", zero_division=0)) if labels else 0.0
        if best is None or score > best[0]:
            best = (score, strength, matrix, bias)
    assert best is not None  # noqa: S101 - there is always one value of C
    score, strength, matrix, bias = best
    logger.info("weighted F1 %.3f on %d validation rows with C=%g", score, len(labels), strength)
    # The scaling goes into the matrix, so that serving needs none.
    matrix = matrix / scale[:, None]
    return strength, matrix, bias - center @ matrix


def _fit(
    params: FrozenEncoderParams, strength: float, features: Floats, target: Integers, weights: Floats, *, seed: int
) -> tuple[Floats, Floats]:
    """Matrix of shape (features, classes) and bias of a logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    totals = np.bincount(target, weights=weights)
    by_class = dict(enumerate(((weights.sum() / (len(totals) * totals)) ** params.class_weight_power).tolist()))
    estimator = LogisticRegression(C=strength, class_weight=by_class, max_iter=params.max_iter, random_state=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(features, target, sample_weight=weights)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        logger.warning("C=%g did not converge in %d steps; raise max_iter or lower C", strength, params.max_iter)
    matrix, bias = estimator.coef_.T, estimator.intercept_
    if matrix.shape[1] == 1:  # two classes: one column that speaks for the second
        matrix, bias = np.hstack([np.zeros_like(matrix), matrix]), np.append(0.0, bias)
    return matrix, bias


def unit_length(states: Floats) -> Floats:
    """Rows divided by their length."""
    return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


class _StemFeatures:
    """The columns of :class:`reviewclf.training.features.TextFeatures` for keyword stems, and none without stems."""

    def __init__(self, stems: Mapping[str, list[str]], weight: float) -> None:
        from reviewclf.training.candidates import LinearSettings
        from reviewclf.training.features import TextFeatures

        self._features = None
        if stems and weight:
            self._features = TextFeatures(LinearSettings(estimator="logistic_regression", stem_weight=weight), stems)

    def __call__(self, texts: Sequence[str]) -> Floats:
        from reviewclf.training.features import prepare

        if self._features is None:
            return np.empty((len(texts), 0))
        return self._features.transform([prepare(text) for text in texts]).toarray()  # type: ignore[no-any-return]
