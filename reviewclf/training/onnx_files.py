"""The ONNX files of a network: 32-bit, its graph fused, 8-bit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 - this module is itself imported inside functions only
from torch import nn  # noqa: TID253

logger = logging.getLogger(__name__)

_OPSET = 17


def write_onnx(module: nn.Module, path: Path, *, output: str, max_length: int) -> None:
    """Write the 32-bit file of a module that takes ``input_ids`` and ``attention_mask``."""
    # The exporter that follows one example: its graphs are the ones whose attention the optimizer of ONNX Runtime fuses; those
    # of the newer exporter run slower. Two rows of different length, so that the mask counts.
    length = max(2, min(8, max_length))
    ids = torch.ones((2, length), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    axes = {0: "batch", 1: "length"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter announces its end, the tracer each constant
        torch.onnx.export(
            module,
            (ids, mask),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=[output],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, output: {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )


def fused(plain: Path, config: Any) -> Path | None:
    """Attention and activation as one operation each; None where the optimizer cannot."""
    from onnxruntime.transformers import optimizer  # type: ignore[import-untyped]
    from onnxruntime.transformers.fusion_options import FusionOptions  # type: ignore[import-untyped]

    path = plain.with_name("fused.onnx")
    options = FusionOptions("bert")
    options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = False  # slower so on the CPU, see onnx_session
    try:
        with _quiet():
            graph = optimizer.optimize_model(
                str(plain),
                model_type="bert",
                num_heads=getattr(config, "num_attention_heads", 0),
                hidden_size=getattr(config, "hidden_size", 0),
                optimization_options=options,
                opt_level=0,
            )
            _fold_segments(graph)
            graph.save_model_to_file(str(path))
    except Exception as error:  # it expects many things of a graph; without it the file is slower, not wrong
        logger.warning("the graph could not be fused and will run slower (%r)", error)
        return None
    return path


def _fold_segments(graph: Any) -> None:
    """Add the row of the first segment to each position's, as no review has a second one: some 15 small operations less."""
    from onnx import numpy_helper

    for node in graph.get_nodes_by_op_type("EmbedLayerNormalization"):
        positions, segments = (graph.get_initializer(node.input[place]) for place in (3, 4))
        if positions is None or segments is None:
            continue
        table = numpy_helper.to_array(positions) + numpy_helper.to_array(segments)[0]
        positions.CopyFrom(numpy_helper.from_array(table, positions.name))
        node.input[1] = node.input[4] = ""
    graph.prune_graph()


def quantised(fp32: Path, *, seven_bits: bool) -> Path:
    """8-bit weights by output channel, activations by batch; embeddings stay, as they cost memory and no time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata  # type: ignore[import-untyped]

    path = fp32.with_name("int8.onnx")
    model = onnx.load(fp32)
    # The last layer is small, and by far the most sensitive. The quantizer names a Gemm so once it has made a MatMul of it.
    kept = [node.name + suffix for node in model.graph.node if node.op_type == "Gemm" for suffix in ("", "_MatMul")]
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
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what ONNX Runtime's tools tell about each node, much of it through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
