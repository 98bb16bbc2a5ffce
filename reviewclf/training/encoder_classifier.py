"""A fine-tuned encoder as it is served: ONNX Runtime, a fast tokenizer and numpy, no torch."""

from __future__ import annotations

import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, TypeAdapter, ValidationError

from reviewclf.errors import RegistryError, TrainingError
from reviewclf.training.calibration import abstain_thresholds, fit_temperature
from reviewclf.training.model import ModelCard, TextClassifier, package_versions, warn_of_other_versions
from reviewclf.training.onnx_session import MODEL, Floats, OnnxEncoder, encoder_text, softmax, warn_of_other_processor

if TYPE_CHECKING:
    from reviewclf.training.encoder_network import EncoderNetwork
    from reviewclf.training.onnx_export import Precision

Integers = NDArray[np.int64]

# A saved network for further training lies in this folder of a saved classifier.
NETWORK = "torch"
_NUMBERS = TypeAdapter(dict[str, float])


class OnnxClassifier(TextClassifier):
    """What classifiers behind ONNX Runtime share; see :class:`reviewclf.training.model.TextClassifier`.

    Parameters
    ----------
    encoder : OnnxEncoder
        The exported network.
    classes : sequence of str, length k
        All categories.
    seen : sequence of int
        Positions in `classes` of the classes that had training rows, ascending; the others get probability 0.
    prior : array, shape (k,)
        Shares of the classes in training; the answer to empty texts.
    candidate, chosen : dict
        See :class:`reviewclf.training.model.ModelCard`.
    temperature : float
        Logits are divided by it: above 1 answers become less sure.
    abstain : mapping of str to float
        See :class:`reviewclf.training.model.TextClassifier`.
    exported : dict
        How the served file was chosen: the dump of :class:`reviewclf.training.onnx_export.ExportReport`.
    """

    kind: str

    def __init__(
        self,
        *,
        encoder: OnnxEncoder,
        classes: Sequence[str],
        seen: Sequence[int],
        prior: Floats,
        candidate: Mapping[str, JsonValue],
        chosen: Mapping[str, JsonValue],
        temperature: float = 1.0,
        abstain: Mapping[str, float] | None = None,
        exported: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self.classes = list(classes)
        self.chosen = dict(chosen)
        self.validation_probabilities = None
        self.temperature = temperature
        self.abstain = dict(abstain or {})
        self.exported = dict(exported or {})
        self._encoder = encoder
        self.alone = encoder.alone
        self._seen = list(seen)
        self._all_seen = self._seen == list(range(len(self.classes)))
        self._prior = np.asarray(prior, dtype=np.float64)
        self._candidate = dict(candidate)

    @property
    def seen_classes(self) -> list[str]:
        """The classes that had training rows, in the order of `classes`."""
        return [self.classes[position] for position in self._seen]

    @abstractmethod
    def _logits(self, texts: Sequence[str]) -> Floats:
        """Logits of the seen classes for cleaned texts, none of them empty."""

    @abstractmethod
    def _save_parts(self, folder: Path) -> dict[str, JsonValue]:
        """Write what is the kind's own, and return what belongs on the card."""

    def predict_proba(self, texts: Sequence[str | None]) -> Floats:
        """See :meth:`reviewclf.training.model.TextClassifier.predict_proba`."""
        cleaned = [encoder_text(text) for text in texts]
        rows = [row for row, text in enumerate(cleaned) if text]
        if rows and len(rows) == len(cleaned) and self._all_seen:
            return softmax(self._logits(cleaned) / self.temperature)
        result = np.tile(self._prior, (len(cleaned), 1))
        if rows:
            logits = self._logits([cleaned[row] for row in rows])
            result[np.ix_(rows, self._seen)] = softmax(logits / self.temperature)
            result[np.ix_(rows, [position for position in range(len(self.classes)) if position not in self._seen])] = 0.0
        return result

    def calibrate(self, logits: Floats, labels: Sequence[str], *, target: float = 0.95) -> None:
        """Set `temperature`, `abstain` and `validation_probabilities` from validation rows.

        Parameters
        ----------
        logits : array, shape (m, number of seen classes)
        labels : sequence of str, length m
            Rows of classes that training never saw count for `abstain` only.
        target : float
            Share of right answers wanted among those given.
        """
        position = {name: column for column, name in enumerate(self.seen_classes)}
        known = [row for row, label in enumerate(labels) if label in position]
        columns = np.array([position[labels[row]] for row in known], dtype=np.int64)
        self.temperature = fit_temperature(logits[known], columns)
        result = np.zeros((len(labels), len(self.classes)))
        result[:, self._seen] = softmax(logits / self.temperature)
        self.validation_probabilities = result
        self.abstain = abstain_thresholds(result, labels, self.classes, target=target)

    def save(self, folder: Path) -> None:
        """Write ``model.onnx``, ``tokenizer.json``, ``model.json`` and what else the kind has."""
        folder.mkdir(parents=True, exist_ok=True)
        extra: dict[str, JsonValue] = {
            "files": self._encoder.save(folder).model_dump(mode="json"),
            "seen": list(self._seen),
            "prior": self._prior.tolist(),
            "temperature": self.temperature,
            "abstain": dict(self.abstain),
            "exported": dict(self.exported),
            **self._save_parts(folder),
        }
        ModelCard(
            kind=self.kind,
            classes=self.classes,
            candidate=self._candidate,
            chosen=self.chosen,
            versions=package_versions("numpy", "onnxruntime", "tokenizers"),
            extra=extra,
        ).write(folder)

    @classmethod
    def _arguments(cls, folder: Path, card: ModelCard, threads: int | None) -> dict[str, Any]:
        """Keywords of the constructor from what :meth:`save` wrote; raises RegistryError or what a wrong card leads to."""
        warn_of_other_versions(card, folder)
        extra = card.extra
        seen = [int(position) for position in extra["seen"]]  # type: ignore[union-attr, arg-type]
        if seen != sorted(set(seen)) or not seen or seen[0] < 0 or seen[-1] >= len(card.classes):
            raise ValueError(f"seen: {seen} of {len(card.classes)} classes")
        temperature = float(extra["temperature"])  # type: ignore[arg-type]
        if not (np.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature: {temperature}")
        exported = dict(extra["exported"])  # type: ignore[arg-type]
        warn_of_other_processor(exported, folder)
        return {
            "encoder": OnnxEncoder.load(folder, extra["files"], threads=threads),
            "classes": card.classes,
            "seen": seen,
            "prior": np.array(extra["prior"], dtype=np.float64),
            "candidate": card.candidate,
            "chosen": card.chosen,
            "temperature": temperature,
            "abstain": _NUMBERS.validate_python(extra["abstain"]),
            "exported": exported,
        }

    def _check(self, folder: Path) -> None:
        # A model whose parts do not fit together fails here and not at the first request.
        answer = self.predict_proba(["проверка", ""])
        if answer.shape != (2, len(self.classes)) or not np.allclose(answer.sum(axis=1), 1.0):
            raise RegistryError(
                f"{folder}: answers are no probabilities of {len(self.classes)} classes; train the classifier anew"
            )


class EncoderClassifier(OnnxClassifier):
    """A fine-tuned encoder; see :class:`OnnxClassifier` for the parameters.

    Parameters
    ----------
    network : EncoderNetwork or Path, optional
        What was exported, or the folder it lies in: saved along for further training.
    """

    kind = "encoder"

    def __init__(self, *, network: EncoderNetwork | Path | None = None, **common: Any) -> None:
        super().__init__(**common)
        self._network = network

    @classmethod
    def from_network(
        cls,
        network: EncoderNetwork,
        tokenizer: Any,
        *,
        classes: Sequence[str],
        seen: Sequence[int],
        prior: Floats,
        candidate: Mapping[str, JsonValue],
        chosen: Mapping[str, JsonValue],
        verify_texts: Sequence[str],
        validation_logits: Floats,
        validation_labels: Sequence[str],
        max_length: int,
        precision: Precision = "auto",
    ) -> EncoderClassifier:
        """Export a trained network, choose the precision, and calibrate.

        Parameters
        ----------
        network : EncoderNetwork
            Trained, with one output for each of `classes`.
        tokenizer : transformers.PreTrainedTokenizerFast
            Its tokenizer.
        verify_texts : sequence of str
            Reviews on which exported and trained network are compared; a few hundred, labels are not needed.
        validation_logits : array, shape (m, k)
            What the network answers on the validation rows; m may be 0.
        validation_labels : sequence of str, length m
        max_length : int
            Tokens that were used in training.
        precision : {"auto", "fp32", "int8"}
            See :func:`reviewclf.training.onnx_export.export`.

        Raises
        ------
        TrainingError
            The tokenizer is no fast one, or the network cannot be exported.
        """
        from reviewclf.training.onnx_export import export

        content, pad_id = fast_tokenizer(tokenizer)
        columns = list(seen)
        with tempfile.TemporaryDirectory(prefix="reviewclf-export-") as scratch:
            report = export(
                network,
                Path(scratch),
                texts=[cleaned for cleaned in map(encoder_text, verify_texts) if cleaned],
                tokenizer=content,
                pad_id=pad_id,
                max_length=max_length,
                precision=precision,
                head=lambda logits, _: logits[:, columns],
            )
            model = (Path(scratch) / MODEL).read_bytes()
        classifier = cls(
            network=network,
            encoder=OnnxEncoder(model, content, pad_id=pad_id, max_length=max_length),
            classes=classes,
            seen=columns,
            prior=prior,
            candidate=candidate,
            chosen=chosen,
            exported=report.model_dump(mode="json"),
        )
        logits = np.asarray(validation_logits, dtype=np.float64).reshape(-1, len(classes))
        classifier.calibrate(logits[:, columns], validation_labels)
        return classifier

    def _logits(self, texts: Sequence[str]) -> Floats:
        outputs = self._encoder(texts)
        if outputs.shape[1] != len(self.classes):
            raise ValueError(f"{MODEL}: {outputs.shape[1]} outputs for {len(self.classes)} classes")
        return outputs if self._all_seen else outputs[:, self._seen]

    def _save_parts(self, folder: Path) -> dict[str, JsonValue]:
        target = folder / NETWORK
        if isinstance(self._network, Path):
            if self._network.resolve() != target.resolve():
                shutil.copytree(self._network, target, dirs_exist_ok=True)
        elif self._network is not None:
            self._network.save(target)
        return {}

    @classmethod
    def load(cls, folder: Path, card: ModelCard, *, threads: int | None = None) -> EncoderClassifier:
        """Read what :meth:`save` wrote; `threads` as in :func:`reviewclf.training.model.load_model`.

        Raises
        ------
        RegistryError
            A file is missing, damaged or was replaced, or does not fit ``model.json``.
        """
        network = folder / NETWORK if (folder / NETWORK).is_dir() else None
        try:
            loaded = cls(network=network, **cls._arguments(folder, card, threads))
            loaded._check(folder)
        except (ValidationError, KeyError, TypeError, ValueError, IndexError) as error:
            raise RegistryError(
                f"{folder}: its files do not fit together ({error!r:.200}); train the classifier anew"
            ) from error
        return loaded


def fast_tokenizer(tokenizer: Any) -> tuple[str, int]:
    """Content of ``tokenizer.json`` and the padding token's id of a tokenizer of Transformers.

    Raises
    ------
    TrainingError
        It is no fast one, or has no padding token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.pad_token_id is None:
        missing = "padding token" if backend is not None else "tokenizer.json"
        raise TrainingError(f"{getattr(tokenizer, 'name_or_path', 'tokenizer')}: has no {missing}; choose another checkpoint")
    return backend.to_str(), int(tokenizer.pad_token_id)
