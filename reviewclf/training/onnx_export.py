"""A trained network as an ONNX file for serving: 32-bit, or 8-bit where that answers the same."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch  # noqa: TID253 - this module is itself imported inside functions only
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import nn  # noqa: TID253

from reviewclf.errors import TrainingError
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.onnx_files import fused, quantised, write_onnx
from reviewclf.training.onnx_session import OnnxEncoder, TextReader, multiplies_int8_exactly, softmax
from reviewclf.training.rows import Floats, Integers

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "int8"]
Output = Literal["logits", "pooled"]

# Share of equal labels from which an 8-bit file is served in place of the 32-bit one.
REQUIRED_AGREEMENT = 0.995
# More texts than these tell no more about the agreement and take the network minutes.
_MAX_TEXTS = 1000
# Outputs of a 32-bit file differ from torch's by rounding, about 1e-6 of their size; wrong masks or positions do by far more.
_TOLERANCE = 1e-3


class Trial(BaseModel, frozen=True, extra="forbid"):
    """One file against the torch network on the same texts.

    Attributes
    ----------
    agreement : float or None
        Share of texts with the same label; None without texts.
    largest_difference : float or None
        Of any probability.
    megabytes : float
        Size of the file.
    """

    agreement: float | None
    largest_difference: float | None
    megabytes: float


class ExportReport(BaseModel, frozen=True, extra="forbid"):
    """Which file is served and why.

    Attributes
    ----------
    served : str
        ``fp32`` or ``int8``.
    texts : int
        Texts that the files were compared on.
    seven_bits : bool
        Weights use 7 bits, for processors that overflow with 8.
    trials : dict
        By the names of `served`, those that were tried.
    """

    served: Literal["fp32", "int8"]
    texts: int
    seven_bits: bool
    trials: dict[str, Trial]


def export(
    network: EncoderNetwork,
    reader: TextReader,
    *,
    texts: Sequence[str],
    precision: Precision = "auto",
    output: Output = "logits",
    head: Callable[[Floats, Sequence[int]], Floats] | None = None,
    expected: Floats | None = None,
) -> tuple[OnnxEncoder, ExportReport]:
    """Make an ONNX file of a network, and choose its precision.

    Parameters
    ----------
    network : EncoderNetwork
        Trained; left as it is.
    reader : TextReader
        How it reads texts.
    texts : sequence of str
        Cleaned real texts on which the files are compared; of more than 1,000 an even choice is taken. Below 200
        a share of 99.5 % says little.
    precision : {"auto", "fp32", "int8"}
        auto: the 8-bit file if its labels equal the network's on at least 99.5 % of the texts, else (or without a text to
        compare on) the 32-bit one.
    output : {"logits", "pooled"}
        What the file answers.
    head : callable, optional
        Makes logits of the outputs, where those are none or not all count; also gets their positions in `texts`.
    expected : array, shape (n, width), optional
        What :func:`network_outputs` gave for `texts`, where that is known.

    Raises
    ------
    TrainingError
        The network reads fewer tokens, cannot be written as ONNX, or the 32-bit file does not answer as the network does.
    """
    network.check_length(reader.max_length)
    module = _exportable(network, output)
    chosen = np.linspace(0, len(texts) - 1, min(len(texts), _MAX_TEXTS)).astype(int).tolist()
    texts = [texts[position] for position in chosen]
    expected = _outputs(module, reader, texts) if expected is None else expected[chosen]
    logits = head or (lambda outputs, rows: outputs)
    seven_bits = not multiplies_int8_exactly()

    def trial(encoder: OnnxEncoder) -> Trial:
        agreement = difference = None
        if texts:
            found, wanted = (softmax(logits(outputs, chosen)) for outputs in (encoder(texts), expected))
            agreement = float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean())
            difference = float(np.abs(found - wanted).max())
        megabytes = round(len(encoder.model) / 1e6, 1)
        return Trial(agreement=agreement, largest_difference=difference, megabytes=megabytes)

    with tempfile.TemporaryDirectory(prefix="reviewclf-onnx-") as scratch:
        fp32 = _checked_fp32(module, Path(scratch), reader, texts, expected)
        encoders = {"fp32": OnnxEncoder(fp32.read_bytes(), reader)}
        if precision == "int8" or (precision == "auto" and texts):
            encoders["int8"] = OnnxEncoder(quantised(fp32, seven_bits=seven_bits).read_bytes(), reader)
    trials = {name: trial(encoder) for name, encoder in encoders.items()}
    agrees = "int8" in trials and (trials["int8"].agreement or 0.0) >= REQUIRED_AGREEMENT
    served: Literal["fp32", "int8"] = "int8" if precision == "int8" or agrees else "fp32"
    report = ExportReport(served=served, texts=len(texts), seven_bits=seven_bits and served == "int8", trials=trials)
    logger.info("exported as %s; against the network on %d texts: %s", served, len(texts), report.model_dump()["trials"])
    return encoders[served], report


def network_outputs(network: EncoderNetwork, reader: TextReader, texts: Sequence[str], output: Output) -> Floats:
    """What the network itself answers to cleaned texts, on the CPU: array of shape (n, width)."""
    network.check_length(reader.max_length)
    return _outputs(_exportable(network, output), reader, texts)


class _Exportable(nn.Module):
    def __init__(self, network: EncoderNetwork, output: Output) -> None:
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        answer = self.network.pooled if self.output == "pooled" else self.network
        return answer(input_ids, attention_mask)

    def run(self, inputs: Mapping[str, Integers]) -> NDArray[Any]:
        """Output rows of one batch."""
        with torch.inference_mode():
            return self(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()  # type: ignore[no-any-return]


def _exportable(network: EncoderNetwork, output: Output) -> _Exportable:
    """Copy in 32 bits on the CPU, with the attention written out: only so the optimizer knows it again."""
    duplicate = copy.deepcopy(network).to(device="cpu", dtype=torch.float32).eval()
    duplicate.encoder.set_attn_implementation("eager")
    return _Exportable(duplicate, output).eval()


def _outputs(module: _Exportable, reader: TextReader, texts: Sequence[str]) -> Floats:
    return reader.answers(module.run, texts) if texts else np.empty((0, 1))


def _checked_fp32(module: _Exportable, folder: Path, reader: TextReader, texts: Sequence[str], expected: Floats) -> Path:
    """The optimised file where there is one that answers as torch does, else the plain one."""
    plain = folder / "fp32.onnx"
    kind, advice = type(module.network.encoder).__name__, "choose a checkpoint of another architecture, such as BERT's"
    try:
        write_onnx(module, plain, output=module.output, max_length=reader.max_length)
    except Exception as error:  # whatever an operation unknown to the exporter makes it raise
        raise TrainingError(f"the encoder {kind} cannot be written as ONNX ({error!r:.300}); {advice}") from error
    for path in filter(None, (fused(plain, module.network.encoder.config), plain)):
        encoder = OnnxEncoder(path.read_bytes(), reader)
        difference = max(
            _difference_on_shapes(module, encoder), _relative_difference(expected, encoder(texts)) if texts else 0.0
        )
        if difference <= _TOLERANCE:
            return path
        logger.warning("%s: outputs differ by %.2g of their size from those of the network", path.name, difference)
    raise TrainingError(
        f"the exported {kind} does not answer as the network does (outputs differ by {difference:.2g} of their size); {advice}"
    )


def _difference_on_shapes(module: _Exportable, encoder: OnnxEncoder) -> float:
    """Largest difference on batches of other shapes than the example's, with masks of all lengths."""
    generator = np.random.default_rng(0)
    vocabulary = module.network.encoder.get_input_embeddings().num_embeddings
    longest = encoder.reader.max_length
    worst = 0.0
    for rows, length in ((1, 1), (1, 3), (3, 2), (5, 17), (2, longest)):
        length = min(length, longest)
        ids = generator.integers(0, vocabulary, (rows, length))
        mask = (np.arange(length) < np.linspace(length, 1, rows).astype(int)[:, None]).astype(np.int64)
        ids[mask == 0] = encoder.reader.pad_id
        inputs = {"input_ids": ids, "attention_mask": mask}
        worst = max(worst, _relative_difference(module.run(inputs), encoder.run(inputs)))
    return worst


def _relative_difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
