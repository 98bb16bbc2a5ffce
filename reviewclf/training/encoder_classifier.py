"""A fine-tuned encoder as it is served: ONNX Runtime, a fast tokenizer and numpy, no torch."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import JsonValue

from reviewclf.text import clean_texts
from reviewclf.training.model import ModelCard, TextClassifier
from reviewclf.training.onnx_session import MODEL, OnnxEncoder, TextReader, softmax, warn_of_other_processor
from reviewclf.training.rows import Floats

if TYPE_CHECKING:
    from reviewclf.training.encoder_network import EncoderNetwork
    from reviewclf.training.onnx_export import Precision

# Reviews on which an exported network is compared with the trained one.
_VERIFY_TEXTS = 600
# A saved network for further training lies in this folder of a saved classifier.
NETWORK = "torch"


class OnnxClassifier(TextClassifier):
    """What classifiers behind ONNX Runtime share.

    Parameters
    ----------
    encoder : OnnxEncoder
        The exported network.
    **common
        See :class:`reviewclf.training.model.TextClassifier`.
    """

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "tokenizers")

    def __init__(self, *, encoder: OnnxEncoder, **common: Any) -> None:
        super().__init__(**common)
        self._encoder = encoder
        self.alone = encoder.alone

    @abstractmethod
    def logits(self, texts: Sequence[str]) -> Floats:
        """Logits of the seen classes for cleaned texts, none of them empty."""

    def seen_probabilities(self, texts: Sequence[str]) -> Floats:
        """See :class:`reviewclf.training.model.TextClassifier`."""
        return softmax(self.logits(texts))

    def write_parts(self, folder: Path) -> dict[str, JsonValue]:
        """Write ``model.onnx`` and ``tokenizer.json``."""
        return {"files": self._encoder.save(folder).model_dump(mode="json")}

    @classmethod
    def read_parts(cls, folder: Path, card: ModelCard, threads: int | None) -> dict[str, Any]:
        """Read ``model.onnx`` and ``tokenizer.json``; neither can run code or name another file."""
        warn_of_other_processor(card.extra.get("exported"), folder)
        return {"encoder": OnnxEncoder.load(folder, card.extra["files"], threads=threads)}


class EncoderClassifier(OnnxClassifier):
    """A fine-tuned encoder.

    Parameters
    ----------
    network : EncoderNetwork or Path, optional
        What was exported, or the folder it lies in: saved along for further training.
    **common
        See :class:`OnnxClassifier`.
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
        texts: Sequence[str | None],
        max_length: int,
        seen: Sequence[int],
        precision: Precision = "auto",
        **common: Any,
    ) -> EncoderClassifier:
        """Export a trained network and choose the precision.

        Parameters
        ----------
        network : EncoderNetwork
            Trained, with one output for each of the classes.
        tokenizer : transformers.PreTrainedTokenizerFast
            Its tokenizer.
        texts : sequence of str
            Reviews on which exported and trained network are compared; the first few hundred count, labels are not needed.
        max_length : int
            Tokens that were used in training.
        precision : {"auto", "fp32", "int8"}
            See :func:`reviewclf.training.onnx_export.export`.
        seen, **common
            See :class:`reviewclf.training.model.TextClassifier`.

        Raises
        ------
        TrainingError
            The tokenizer is no fast one, or the network cannot be exported.
        """
        from reviewclf.training.onnx_export import export

        encoder, report = export(
            network,
            TextReader.of(tokenizer, max_length=max_length),
            texts=[text for text in clean_texts(texts[:_VERIFY_TEXTS]) if text],
            precision=precision,
            head=lambda logits, _: logits[:, list(seen)],
        )
        return cls(network=network, encoder=encoder, seen=seen, exported=report.model_dump(mode="json"), **common)

    def logits(self, texts: Sequence[str]) -> Floats:
        """See :class:`OnnxClassifier`."""
        outputs = self._encoder(texts)
        if outputs.shape[1] != len(self.classes):
            raise ValueError(f"{MODEL}: {outputs.shape[1]} outputs for {len(self.classes)} classes")
        return outputs[:, self.seen]

    def write_parts(self, folder: Path) -> dict[str, JsonValue]:
        """Write the network too."""
        target = folder / NETWORK
        if isinstance(self._network, Path):
            if self._network.resolve() != target.resolve():
                shutil.copytree(self._network, target, dirs_exist_ok=True)
        elif self._network is not None:
            self._network.save(target)
        return super().write_parts(folder)

    @classmethod
    def read_parts(cls, folder: Path, card: ModelCard, threads: int | None) -> dict[str, Any]:
        """See :class:`OnnxClassifier`; the network is left where it is."""
        network = folder / NETWORK if (folder / NETWORK).is_dir() else None
        return {"network": network, **super().read_parts(folder, card, threads)}
