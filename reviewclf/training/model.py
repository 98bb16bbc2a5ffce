"""A trained classifier: what every kind of it can do, and how it is saved and loaded. Nothing is pickled.

One word for each shape that a model has here and elsewhere:

classifier
    :class:`TextClassifier`: raw texts in, probabilities of the categories out; what training returns and a folder holds.
network
    :class:`reviewclf.training.encoder_network.EncoderNetwork`: the torch module that fine-tuning changes.
encoder
    :class:`reviewclf.training.onnx_session.OnnxEncoder`: the exported network, part of a classifier; texts in, numbers out.
model
    A classifier as MLflow logs it and the registry numbers it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from pydantic import JsonValue

from reviewclf.errors import RegistryError, TrainingError
from reviewclf.text import clean_texts
from reviewclf.training.calibration import abstain_thresholds, fit_temperature
from reviewclf.training.kinds import load_kind
from reviewclf.training.model_card import CARD, Learned, ModelCard
from reviewclf.training.rows import Floats

__all__ = ["UNSURE", "ModelCard", "TextClassifier", "load_model"]

# The answer of a classifier that was asked to say so when it is not sure enough.
UNSURE = "не уверен"


class TextClassifier(ABC):
    """A trained classifier of raw texts.

    A kind's own class says its ``kind`` and its ``packages``, and how it answers, is written and is read:
    :meth:`seen_probabilities`, :meth:`write_parts` and :meth:`read_parts`.

    Parameters
    ----------
    classes : sequence of str, length k
        All categories of the taxonomy, in its order, also those without a training row.
    seen : sequence of int
        Positions in `classes` of the classes that had training rows, ascending; the others get probability 0.
    prior : array, shape (k,)
        Shares of the classes in training; the answer to empty texts.
    candidate : dict
        The entry of the candidates file.
    chosen : dict, optional
        The settings that training ended with, where some were searched for.
    temperature : float
        Above 1 answers become less sure, see :meth:`calibrate`.
    abstain : dict of str to float, optional
        By class: the probability below which :meth:`answers` says :data:`UNSURE`, if asked to; missing classes never do.
    exported : dict, optional
        How the served file was made and checked, of the kinds that export one.

    Attributes
    ----------
    packages : tuple of str
        What loading and answering need beside this package; their versions are kept with the model.
    alone : bool
        Whether each text goes through it alone, however many it is given.
    validation_probabilities : array of shape (m, k) or None
        What the classifier answers on the validation rows it was trained with; not saved, so None after loading.
    history : list of dict
        Figures of each epoch, of the kinds that have epochs; not saved.
    trials : list of dict
        Settings and score of each trial of a search; not saved.
    figures : dict of str to float
        What else was measured in training, such as steps per second; not saved.
    """

    kind: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    alone: bool = False
    validation_probabilities: Floats | None = None
    history: Sequence[Mapping[str, float]] = ()
    trials: Sequence[Mapping[str, float]] = ()
    figures: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self,
        *,
        classes: Sequence[str],
        seen: Sequence[int],
        prior: Sequence[float] | Floats,
        candidate: Mapping[str, JsonValue],
        chosen: Mapping[str, JsonValue] | None = None,
        temperature: float = 1.0,
        abstain: Mapping[str, float] | None = None,
        exported: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self.classes = list(classes)
        self.seen = list(seen)
        self.prior = np.asarray(prior, dtype=np.float64)
        self.candidate = dict(candidate)
        self.chosen = dict(chosen or {})
        self.temperature = temperature
        self.abstain = dict(abstain or {})
        self.exported = dict(exported or {})

    @abstractmethod
    def seen_probabilities(self, texts: Sequence[str]) -> Floats:
        """Probabilities of the seen classes for n cleaned texts, none of them empty: shape (n, number of seen classes)."""

    @abstractmethod
    def write_parts(self, folder: Path) -> dict[str, JsonValue]:
        """Write what is the kind's own, without pickle, and return what belongs into the card."""

    @classmethod
    @abstractmethod
    def read_parts(cls, folder: Path, card: ModelCard, threads: int | None) -> dict[str, Any]:
        """Keywords of the constructor from what :meth:`write_parts` wrote; what is returned there is in ``card.extra``."""

    @property
    def seen_classes(self) -> list[str]:
        """The classes that had training rows, in the order of `classes`."""
        return [self.classes[position] for position in self.seen]

    def predict_proba(self, texts: Sequence[str | None]) -> Floats:
        """Probabilities of all categories.

        Parameters
        ----------
        texts : sequence of str, length n
            Reviews as they came; they are cleaned here. A missing text (None, NaN) or one that cleaning empties gets the
            shares of the classes in training.

        Returns
        -------
        array of float64, shape (n, k)
            Columns in the order of `classes`; rows sum to 1. Categories never seen in training have probability 0.
        """
        cleaned = clean_texts(texts)
        rows = [row for row, text in enumerate(cleaned) if text]
        result = np.tile(self.prior, (len(cleaned), 1))
        if rows:
            found = np.zeros((len(rows), len(self.classes)))
            found[:, self.seen] = self._tempered(self.seen_probabilities([cleaned[row] for row in rows]))
            result[rows] = found
        return result

    def predict(self, texts: Sequence[str | None], *, abstain: bool = False) -> list[str]:
        """Label of each text; see :meth:`answers`."""
        return self.answers(self.predict_proba(texts), abstain=abstain)

    def answers(self, probabilities: Floats, *, abstain: bool = False) -> list[str]:
        """Likeliest class of each row; :data:`UNSURE` where `abstain` and the class's threshold say so.

        Parameters
        ----------
        probabilities : array, shape (n, k)
            From :meth:`predict_proba`.
        """
        best = [self.classes[position] for position in probabilities.argmax(axis=1)] if len(probabilities) else []
        if not abstain:
            return best
        sure = probabilities.max(axis=1, initial=0.0)
        return [UNSURE if value < self.abstain.get(name, 0.0) else name for name, value in zip(best, sure, strict=True)]

    def calibrate(self, validation: pd.DataFrame, *, scale: bool = False, target: float = 0.95) -> Floats:
        """Set `validation_probabilities` and `abstain` from validation rows, and with `scale` the temperature before.

        Parameters
        ----------
        validation : DataFrame of m rows
            Columns ``text_clean`` and ``label``. Rows of classes that training never saw count for `abstain` only.
        target : float
            Share of right answers wanted among those given.

        Returns
        -------
        array, shape (m, k)
            The validation probabilities.
        """
        texts, labels = validation["text_clean"].tolist(), validation["label"].tolist()
        answers = self.predict_proba(texts)
        if scale:
            column = {name: number for number, name in enumerate(self.seen_classes)}
            rows = [row for row, text in enumerate(clean_texts(texts)) if text]
            known = [row for row in rows if labels[row] in column]
            logits = np.log(np.maximum(answers[np.ix_(known, self.seen)], 1e-300))
            self.temperature = fit_temperature(logits, np.array([column[labels[row]] for row in known], dtype=np.int64))
            answers[np.ix_(rows, self.seen)] = self._tempered(answers[np.ix_(rows, self.seen)])
        self.validation_probabilities = answers
        self.abstain = abstain_thresholds(answers, labels, self.classes, target=target)
        return answers

    def _tempered(self, probabilities: Floats) -> Floats:
        """Probabilities of logits that are divided by the temperature."""
        if self.temperature == 1.0:
            return probabilities
        powers = probabilities ** (1.0 / self.temperature)
        return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Write the classifier into `folder`, which is created; :func:`load_model` reads it back."""
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: getattr(self, name) for name in ("seen", "temperature", "abstain", "exported")}
        learned = Learned(prior=self.prior.tolist(), **own)
        card = ModelCard(
            kind=self.kind,
            classes=self.classes,
            candidate=self.candidate,
            chosen=self.chosen,
            versions={name: version(name) for name in ("numpy", *self.packages)},
            extra={**learned.model_dump(mode="json"), **self.write_parts(folder)},
        )
        card.write(folder)

    @classmethod
    def load(cls, folder: Path, card: ModelCard, *, threads: int | None = None) -> Self:
        """Read what :meth:`save` wrote; see :func:`load_model`."""
        card.warn_of_other_versions(folder)
        try:
            learned = Learned.model_validate(card.extra)
            common = {"classes": card.classes, "candidate": card.candidate, "chosen": card.chosen}
            loaded = cls(**common, **learned.model_dump(), **cls.read_parts(folder, card, threads))  # type: ignore[arg-type]
            # A classifier whose parts do not fit together fails here and not at the first request.
            answer = loaded.predict_proba(["проверка", ""])
        except RegistryError:
            raise
        except Exception as error:  # whatever files that do not fit together lead to
            raise RegistryError(f"{folder}: its files do not fit together ({error!r:.200}); train it anew") from error
        if answer.shape != (2, len(card.classes)) or not np.allclose(answer.sum(axis=1), 1.0):
            raise RegistryError(f"{folder}: answers are no probabilities of {len(card.classes)} classes; train it anew")
        return loaded


def load_model(folder: str | Path, *, threads: int | None = None) -> TextClassifier:
    """Load a saved classifier.

    Parameters
    ----------
    threads : int, optional
        Threads of one call, of the kinds that use several; default: the physical cores, at most 4. A server that answers
        several calls at once wants 1.

    Raises
    ------
    RegistryError
        A file is missing, damaged or tampered with, or the kind is unknown; the message names the file.
    """
    folder = Path(folder)
    card = ModelCard.read(folder)
    try:
        kind = load_kind(card.kind)
    except TrainingError as error:
        raise RegistryError(f"{folder / CARD}: {error}; install the package that it was trained with") from error
    classifier: TextClassifier = kind.classifier().load(folder, card, threads=threads)
    return classifier
