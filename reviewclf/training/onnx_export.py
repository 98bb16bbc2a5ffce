"""A trained network as an ONNX file for serving: 32-bit, or 8-bit where that answers the same."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch  # noqa: TID253 - this module is itself imported inside functions only
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn  # noqa: TID253

from reviewclf.errors import TrainingError
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.onnx_session import (
    MODEL,
    Floats,
    OnnxEncoder,
    batches,
    multiplies_int8_exactly,
    read_tokenizer,
    softmax,
)

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "int8"]
Output = Literal["logits", "pooled"]

# Share of equal labels from which an 8-bit file is served in place of the 32-bit one.
REQUIRED_AGREEMENT = 0.995
# More texts than these tell no more about the agreement and take the network minutes.
_MAX_TEXTS = 1000
_RANGE_TEXTS = 200
# Outputs of a 32-bit file differ from torch's by rounding, about 1e-6 of their size; wrong masks or positions do by far more.
_TOLERANCE = 1e-3
_OPSET = 17
# Input channels of a matrix that are multiplied in 32 bits when they reach far beyond the others, see _split_outliers.
_OUTLIERS = 16
_OUTLIER_RATIO = 2.0


class Trial(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    agreement: float | None
    largest_difference: float | None
    megabytes: float


class ExportReport(BaseModel):
    """Which file is served and why.

    Attributes
    ----------
    served : str
        ``fp32``, ``int8``, or ``int8-split``: 8-bit with the outlying channels of an input apart, in 32 bits.
    texts : int
        Texts that the files were compared on.
    seven_bits : bool
        Weights use 7 bits, for processors that overflow with 8.
    trials : dict
        By the names of `served`, those that were tried, in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    served: Literal["fp32", "int8", "int8-split"]
    texts: int
    seven_bits: bool
    trials: dict[str, Trial]


def export(
    network: EncoderNetwork,
    folder: Path,
    *,
    texts: Sequence[str],
    tokenizer: str,
    pad_id: int,
    max_length: int,
    precision: Precision = "auto",
    output: Output = "logits",
    head: Callable[[Floats, Sequence[int]], Floats] | None = None,
    expected: Floats | None = None,
) -> ExportReport:
    """Write ``model.onnx``.

    Parameters
    ----------
    network : EncoderNetwork
        Trained; left as it is.
    folder : Path
        Where the file goes; created.
    texts : sequence of str
        Cleaned real texts on which the files are compared; of more than 1,000 an even choice is taken. Below 200
        a share of 99.5 % says little.
    tokenizer, pad_id, max_length
        As for :class:`reviewclf.training.onnx_session.OnnxEncoder`.
    precision : {"auto", "fp32", "int8"}
        auto: the first 8-bit file with labels equal to the network's on at least 99.5 % of the texts, the 32-bit one where
        there is none (or no text to compare on). int8: the same, but the best 8-bit one where there is none.
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
    _check_length(network, max_length)
    chosen = _even_choice(len(texts), _MAX_TEXTS)
    texts = [texts[position] for position in chosen]
    logits = head or (lambda outputs, rows: outputs)
    settings: dict[str, Any] = {"pad_id": pad_id, "max_length": max_length}
    seven_bits = not multiplies_int8_exactly()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="reviewclf-onnx-") as scratch:
        module = _exportable(network, output)
        plain = Path(scratch) / "fp32.onnx"
        _write_onnx(module, plain, max_length=max_length)
        expected = _outputs(module, texts, tokenizer, **settings) if expected is None else expected[chosen]
        fp32 = _checked_fp32(module, plain, texts, expected, tokenizer, settings)
        reference = softmax(logits(expected, chosen)) if len(texts) else np.empty((0, 1))

        def trial(path: Path) -> Trial:
            megabytes = round(path.stat().st_size / 1e6, 1)
            if not len(texts):
                return Trial(agreement=None, largest_difference=None, megabytes=megabytes)
            found = softmax(logits(OnnxEncoder(path.read_bytes(), tokenizer, **settings)(texts), chosen))
            return Trial(
                agreement=float((found.argmax(axis=1) == reference.argmax(axis=1)).mean()),
                largest_difference=float(np.abs(found - reference).max()),
                megabytes=megabytes,
            )

        files = {"fp32": fp32}
        trials = {"fp32": trial(fp32)}
        served = "fp32"
        if precision == "int8" or (precision == "auto" and len(texts)):
            few = [texts[position] for position in _even_choice(len(texts), _RANGE_TEXTS)]
            ranges = _input_ranges(fp32, few, tokenizer, max_length=max_length)
            for name, outliers in (("int8", 0), ("int8-split", _OUTLIERS)):
                files[name] = Path(scratch) / f"{name}.onnx"
                _quantise(fp32, files[name], ranges, outliers=outliers, seven_bits=seven_bits)
                trials[name] = trial(files[name])
                if (trials[name].agreement or 0.0) >= REQUIRED_AGREEMENT:
                    served = name
                    break
            else:
                if precision == "int8":
                    served = max(("int8", "int8-split"), key=lambda name: trials[name].agreement or 0.0)
        (folder / MODEL).write_bytes(files[served].read_bytes())
    report = ExportReport.model_validate(
        {"served": served, "texts": len(texts), "seven_bits": seven_bits and served != "fp32", "trials": trials}
    )
    logger.info("exported as %s; against the network on %d texts: %s", served, len(texts), report.model_dump()["trials"])
    return report


def network_outputs(
    network: EncoderNetwork, texts: Sequence[str], *, tokenizer: str, pad_id: int, max_length: int, output: Output
) -> Floats:
    """What the network itself answers to cleaned texts, on the CPU: array of shape (n, width)."""
    _check_length(network, max_length)
    return _outputs(_exportable(network, output), texts, tokenizer, pad_id=pad_id, max_length=max_length)


# -- the 32-bit file ---------------------------------------------------------------------------------------------------


def _check_length(network: EncoderNetwork, max_length: int) -> None:
    positions: int | None = getattr(network.encoder.config, "max_position_embeddings", None)
    if positions is None:
        return
    # RoBERTa's kind counts positions from the one after the padding token's number.
    table = getattr(getattr(network.encoder, "embeddings", None), "position_embeddings", None)
    offset = getattr(table, "padding_idx", None)
    usable = positions - (0 if offset is None else offset + 1)
    if max_length > usable:
        raise TrainingError(f"max_length: {max_length}, but the encoder reads {usable} tokens at most; lower it")


class _Exportable(nn.Module):
    def __init__(self, network: EncoderNetwork, output: Output) -> None:
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if self.output == "pooled":
            return self.network.pooled(input_ids, attention_mask)
        return self.network(input_ids, attention_mask)  # type: ignore[no-any-return]


def _exportable(network: EncoderNetwork, output: Output) -> _Exportable:
    """Copy in 32 bits on the CPU, with the attention written out: only so the optimizer knows it again."""
    duplicate = copy.deepcopy(network).to(device="cpu", dtype=torch.float32).eval()
    duplicate.encoder.set_attn_implementation("eager")
    return _Exportable(duplicate, output).eval()


def _write_onnx(module: _Exportable, path: Path, *, max_length: int) -> None:
    # The exporter that follows one example: its graphs are the ones whose attention the optimizer of ONNX Runtime fuses; those
    # of the newer exporter run slower. Two rows of different length, so that the mask counts.
    length = max(2, min(8, max_length))
    ids = torch.ones((2, length), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    axes = {0: "batch", 1: "length"}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter announces its end, the tracer each constant
            torch.onnx.export(
                module,
                (ids, mask),
                str(path),
                input_names=["input_ids", "attention_mask"],
                output_names=[module.output],
                dynamic_axes={"input_ids": axes, "attention_mask": axes, module.output: {0: "batch"}},
                opset_version=_OPSET,
                dynamo=False,
            )
    except Exception as error:  # whatever an operation unknown to the exporter makes it raise
        raise TrainingError(
            f"the encoder {type(module.network.encoder).__name__} cannot be written as ONNX ({error!r:.300}); "
            "choose a checkpoint of another architecture, such as BERT's"
        ) from error


def _outputs(module: _Exportable, texts: Sequence[str], tokenizer: str, *, pad_id: int, max_length: int) -> Floats:
    """What torch answers, shape (n, width)."""
    answers: list[tuple[Any, NDArray[np.float32]]] = []
    with torch.inference_mode():
        for rows, inputs in batches(read_tokenizer(tokenizer, max_length), texts, pad_id=pad_id):
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            answers.append((rows, module(**tensors).numpy()))
    result = np.empty((len(texts), answers[0][1].shape[1] if answers else 0))
    for rows, answer in answers:
        result[rows] = answer
    return result


def _checked_fp32(
    module: _Exportable, plain: Path, texts: Sequence[str], expected: Floats, tokenizer: str, settings: dict[str, Any]
) -> Path:
    """The optimised file where there is one that answers as torch does, else the plain one."""
    error = "not tried"
    config = module.network.encoder.config
    heads, width = getattr(config, "num_attention_heads", 0), getattr(config, "hidden_size", 0)
    for path in (_optimised(plain, heads=heads, width=width), plain):
        if path is None:
            continue
        encoder = OnnxEncoder(path.read_bytes(), tokenizer, **settings)
        difference = _difference_on_shapes(module, encoder, max_length=settings["max_length"])
        if len(texts):
            difference = max(difference, _relative_difference(expected, encoder(texts)))
        if difference <= _TOLERANCE:
            return path
        error = f"outputs differ by {difference:.2g} of their size"
        logger.warning("%s: %s from those of the network", path.name, error)
    raise TrainingError(
        f"the exported {type(module.network.encoder).__name__} does not answer as the network does ({error}); "
        "choose a checkpoint of another architecture, such as BERT's"
    )


def _difference_on_shapes(module: _Exportable, encoder: OnnxEncoder, *, max_length: int) -> float:
    """Largest difference on batches of other shapes than the example's, with masks of all lengths."""
    generator = np.random.default_rng(0)
    vocabulary = module.network.encoder.get_input_embeddings().num_embeddings
    worst = 0.0
    for rows, length in ((1, 1), (1, 3), (3, 2), (5, 17), (2, max_length)):
        length = min(length, max_length)
        ids = generator.integers(0, vocabulary, (rows, length))
        mask = (np.arange(length) < np.linspace(length, 1, rows).astype(int)[:, None]).astype(np.int64)
        ids[mask == 0] = encoder.pad_id
        with torch.inference_mode():
            expected = module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        worst = max(worst, _relative_difference(expected, encoder.raw(ids, mask)))
    return worst


def _relative_difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))


def _optimised(plain: Path, *, heads: int, width: int) -> Path | None:
    """Attention and activation as one operation each; None where the optimizer cannot."""
    from onnxruntime.transformers import optimizer  # type: ignore[import-untyped]
    from onnxruntime.transformers.fusion_options import FusionOptions  # type: ignore[import-untyped]

    path = plain.with_name("fused.onnx")
    options = FusionOptions("bert")
    options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = False  # slower so on the CPU, see onnx_session
    try:
        with _quiet():
            fused = optimizer.optimize_model(
                str(plain),
                model_type="bert",
                num_heads=heads,
                hidden_size=width,
                optimization_options=options,
                opt_level=0,
            )
            _fold_segments(fused)
            fused.save_model_to_file(str(path))
    except Exception as error:  # it expects many things of a graph; without it the file is slower, not wrong
        logger.warning("the graph could not be fused and will run slower (%r)", error)
        return None
    return path


def _fold_segments(fused: Any) -> None:
    """Add the row of the first segment to each position's, as no review has a second one: some 15 small operations less."""
    from onnx import numpy_helper

    for node in fused.get_nodes_by_op_type("EmbedLayerNormalization"):
        positions, segments = (fused.get_initializer(node.input[place]) for place in (3, 4))
        if positions is None or segments is None:
            continue
        table = numpy_helper.to_array(positions) + numpy_helper.to_array(segments)[0]
        positions.CopyFrom(numpy_helper.from_array(table, positions.name))
        node.input[1] = node.input[4] = ""
    fused.prune_graph()


# -- 8-bit files -------------------------------------------------------------------------------------------------------


def _input_ranges(fp32: Path, texts: Sequence[str], tokenizer: str, *, max_length: int) -> dict[str, Floats]:
    """Largest absolute value of each input channel of each matrix, by the input's name."""
    import onnx
    import onnxruntime  # type: ignore[import-untyped]

    model = onnx.load(fp32)
    names = sorted({node.input[0] for node in _matrix_nodes(model, "MatMul")})
    if not texts or not names:
        return {}
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ranges: dict[str, Floats] = {}
    # One text a batch: what stands in padding must not count.
    for _, inputs in batches(read_tokenizer(tokenizer, max_length), texts, pad_id=0, tokens=1):
        for name, value in zip(names, session.run(names, inputs), strict=True):
            largest = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            ranges[name] = np.maximum(ranges.get(name, 0.0), largest)
    return ranges


def _matrix_nodes(model: Any, *kinds: str) -> list[Any]:
    constants = {item.name for item in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in kinds and node.input[1] in constants]


def _quantise(fp32: Path, path: Path, ranges: dict[str, Floats], *, outliers: int, seven_bits: bool) -> None:
    """8-bit weights by output channel, activations by batch; embeddings stay, as they cost memory and no time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata  # type: ignore[import-untyped]

    model = onnx.load(fp32)
    kept = _split_outliers(model, ranges, outliers)
    # The last layer is small, and by far the most sensitive. The quantizer names a Gemm so once it has made a MatMul of it.
    kept += [node.name + suffix for node in model.graph.node if node.op_type == "Gemm" for suffix in ("", "_MatMul")]
    add_pre_process_metadata(model)  # else the quantizer advises to fuse the graph first
    with _quiet():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Attention"],
            per_channel=True,
            reduce_range=seven_bits,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def _split_outliers(model: Any, ranges: dict[str, Floats], count: int) -> list[str]:
    """Multiply the few input channels with very large values apart from the others, in 32 bits.

    One scale serves all values of an input, so a channel that reaches ten times as far as the others leaves those three bits
    (Dettmers et al., LLM.int8(), 2022). Encoders have such channels: `e5-small-ru` one or two in each feed-forward layer.

    Returns
    -------
    list of str
        Names of the products that must stay in 32 bits.
    """
    import onnx

    graph = model.graph
    weights = {item.name: item for item in graph.initializer}
    split = {node.output[0] for node in _matrix_nodes(model, "MatMul")} if count else set()
    nodes, kept = [], []
    for position, node in enumerate(graph.node):
        reach = ranges.get(node.input[0]) if node.output[0] in split else None
        if reach is None or len(reach) <= 2 * count:
            nodes.append(node)
            continue
        order = np.argsort(-reach, kind="stable")
        if reach[order[0]] <= _OUTLIER_RATIO * reach[order[count]]:
            nodes.append(node)
            continue
        name = f"split_{position}"
        top = np.sort(order[:count])
        others = np.ones(len(reach), dtype=np.float32)
        others[top] = 0.0
        matrix = onnx.numpy_helper.to_array(weights[node.input[1]])
        for suffix, array in (("others", others), ("channels", top.astype(np.int64)), ("matrix", matrix[top])):
            graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), f"{name}_{suffix}"))
        source, target = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{name}_masked", f"{name}_rest"
        make = onnx.helper.make_node
        nodes += [
            make("Mul", [source, f"{name}_others"], [f"{name}_masked"], name=f"{name}_mask"),
            make("Gather", [source, f"{name}_channels"], [f"{name}_picked"], name=f"{name}_pick", axis=-1),
            make("MatMul", [f"{name}_picked", f"{name}_matrix"], [f"{name}_apart"], name=f"{name}_product"),
            node,
            make("Add", [f"{name}_rest", f"{name}_apart"], [target], name=f"{name}_sum"),
        ]
        kept.append(f"{name}_product")
    copies = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return kept


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what ONNX Runtime's tools tell about each node, much of it through the root logger."""
    names = (None, "onnx_model", "onnx_model_bert", "fusion_base", "fusion_utils", "fusion_attention")
    loggers = [logging.getLogger(name) for name in names]
    for item in loggers:
        item.addFilter(_is_warning)
    try:
        yield
    finally:
        for item in loggers:
            item.removeFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _even_choice(total: int, count: int) -> list[int]:
    return [int(position) for position in np.linspace(0, total - 1, min(total, count))]
