"""Exported encoders: equal to the network on every shape, 8 bits only where the labels stay."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from reviewclf.errors import TrainingError
from reviewclf.training import onnx_export
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.onnx_export import ExportReport, export, network_outputs
from reviewclf.training.onnx_session import OnnxEncoder, TextReader
from tests.unit.tiny_encoder import CLASSES, tiny_body, tiny_network, tiny_tokenizer, torch_logits, toy_reviews

TEXTS, LABELS = toy_reviews()
TOKENIZER = tiny_tokenizer().backend_tokenizer.to_str()
MIXED = ["чашка", "ок", " ".join(TEXTS[:9]), "платье и юбка!", " ".join(TEXTS[:30]), "незнакомое слово 46"]


def _reader(max_length: int = 64, pad_id: int = 0) -> TextReader:
    return TextReader(TOKENIZER, pad_id=pad_id, max_length=max_length)


def _export(network: EncoderNetwork | None = None, **changes: Any) -> tuple[OnnxEncoder, ExportReport]:
    return export(network or tiny_network(), changes.pop("reader", _reader()), **{"texts": TEXTS, **changes})


@pytest.mark.parametrize("threads", [1, 3])
def test_an_8_bit_answer_does_not_depend_on_the_texts_beside_it(threads: int) -> None:
    encoder = OnnxEncoder(_export(precision="int8")[0].model, _reader(), threads=threads)
    assert encoder.alone
    alone = np.vstack([encoder([text]) for text in MIXED])
    assert np.array_equal(encoder(MIXED), alone)
    # Together they would move each other.
    ((rows, inputs),) = _reader().batches(MIXED)
    assert not np.allclose(encoder.run(inputs), alone[rows], atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_fp32_answers_as_the_network_whatever_stands_beside_a_text(pooling: str) -> None:
    network = tiny_network(pooling)
    encoder, report = _export(network, precision="fp32")
    expected = torch_logits(network, MIXED)
    assert np.ptp(expected, axis=0).max() > 1
    assert np.allclose(encoder(MIXED), expected, atol=1e-4)
    assert np.allclose(np.vstack([encoder([text]) for text in MIXED]), expected, atol=1e-4)
    for rows in (2, 7):
        assert np.allclose(encoder(TEXTS[:rows]), torch_logits(network, TEXTS[:rows]), atol=1e-4)
    assert (report.served, list(report.trials)) == ("fp32", ["fp32"])
    assert report.trials["fp32"].agreement == 1.0


def test_pooled_states_can_be_the_output() -> None:
    network = tiny_network()
    encoder, _ = _export(network, precision="fp32", output="pooled", head=lambda states, _: states[:, :3])
    with torch.inference_mode():
        encoded = tiny_tokenizer()(MIXED[2], truncation=True, max_length=64, return_tensors="pt")
        expected = network.pooled(encoded["input_ids"], encoded["attention_mask"]).numpy()
    assert encoder(MIXED).shape == (len(MIXED), 32)
    assert np.allclose(encoder(MIXED)[2], expected, atol=1e-4)


def test_graph_is_fused() -> None:
    import onnx

    kinds = [node.op_type for node in onnx.load_from_string(_export(precision="fp32")[0].model).graph.node]
    assert kinds.count("Attention") == 2
    assert "Softmax" not in kinds
    assert "SkipLayerNormalization" not in kinds
    # What counted positions and segments has gone.
    assert not {"Expand", "Where", "Equal", "GatherElements"} & set(kinds)


def test_encoder_that_cannot_be_fused_is_exported_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "fused", lambda *arguments, **keywords: None)
    encoder, _ = _export(precision="fp32")
    assert np.allclose(encoder(MIXED), torch_logits(tiny_network(), MIXED), atol=1e-4)


def test_network_is_left_as_it_is_and_may_be_in_half_precision() -> None:
    network = EncoderNetwork(tiny_body(), classes=len(CLASSES), pooling="mean").to(torch.bfloat16).train()
    attention = network.encoder.config._attn_implementation
    _export(network, precision="fp32")
    assert network.training
    assert network.head.weight.dtype == torch.bfloat16
    assert network.encoder.config._attn_implementation == attention != "eager"


def test_file_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    write = onnx_export.write_onnx

    def write_another(module: Any, path: Any, **keywords: Any) -> None:
        write(onnx_export._exportable(tiny_network("cls"), "logits"), path, **keywords)

    monkeypatch.setattr(onnx_export, "write_onnx", write_another)
    with pytest.raises(TrainingError, match="does not answer as the network does"):
        _export()
    with pytest.raises(TrainingError, match="does not answer as the network does"):
        _export(texts=[])


def test_encoder_without_an_onnx_form_is_refused() -> None:
    network = EncoderNetwork(tiny_body(), classes=4, pooling="mean")
    network.encoder.embeddings.register_forward_hook(lambda module, inputs, output: torch.special.i1e(output))
    with pytest.raises(TrainingError, match="BertModel cannot be written as ONNX"):
        _export(network)


def test_more_tokens_than_the_encoder_reads_are_refused() -> None:
    from transformers import RobertaConfig, RobertaModel

    with pytest.raises(TrainingError, match="max_length: 65, but the encoder reads 64 tokens"):
        _export(reader=_reader(65))
    config = RobertaConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    roberta = EncoderNetwork(RobertaModel(config), classes=4, pooling="mean").eval()
    with pytest.raises(TrainingError, match="max_length: 63, but the encoder reads 62 tokens"):
        _export(roberta, reader=_reader(63, pad_id=1))
    report = _export(roberta, reader=_reader(62, pad_id=1), precision="fp32")[1]
    assert report.trials["fp32"].agreement == 1.0


# -- 8 bits ----------------------------------------------------------------------------------------------------------


def test_int8_is_served_where_the_labels_stay() -> None:
    encoder, report = _export()
    assert report.served == "int8"
    assert report.trials[report.served].agreement == 1.0
    difference = report.trials[report.served].largest_difference
    assert difference is not None
    assert 1e-5 < difference < 0.2
    assert report.texts == len(TEXTS)
    assert (encoder(TEXTS).argmax(axis=1) == torch_logits(tiny_network(), TEXTS).argmax(axis=1)).mean() > 0.98


def test_int8_file_multiplies_in_8_bits_all_but_the_last_layer() -> None:
    import onnx

    kinds = [node.op_type for node in onnx.load_from_string(_export(precision="int8")[0].model).graph.node]
    assert kinds.count("QAttention") == 2
    assert kinds.count("MatMulInteger") == 6
    assert kinds.count("Gemm") + kinds.count("MatMul") == 1


def test_fp32_is_served_where_labels_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "REQUIRED_AGREEMENT", 1.01)
    encoder, report = _export()
    assert report.served == "fp32"
    assert list(report.trials) == ["fp32", "int8"]
    assert np.allclose(encoder(MIXED), torch_logits(tiny_network(), MIXED), atol=1e-4)
    assert _export(precision="int8")[1].served == "int8"


def test_agreement_counts_the_labels_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that turns rounding into labels makes 8 bits useless; one that ignores the outputs makes them harmless."""

    def by_rounding(logits: Any, rows: Any) -> Any:
        odd = np.floor(logits[:, 0] * 1e4) % 2
        return np.stack([odd, 1 - odd], axis=1)

    assert _export(head=by_rounding)[1].served == "fp32"
    seen: list[list[int]] = []

    def by_row(logits: Any, rows: Any) -> Any:
        seen.append(list(rows))
        return np.stack([np.array(rows) % 2, np.full(len(rows), 0.5)], axis=1)

    monkeypatch.setattr(onnx_export, "_MAX_TEXTS", 5)
    _, report = _export(head=by_row, expected=torch_logits(tiny_network(), TEXTS))
    assert (report.served, report.texts) == ("int8", 5)
    assert seen[0] == [0, 29, 59, 89, 119]


def test_without_texts_nothing_is_known_of_8_bits() -> None:
    _, report = _export(texts=[])
    assert report.served == "fp32"
    assert report.trials["fp32"].agreement is None
    assert _export(texts=[], precision="int8")[1].served == "int8"


def test_processor_without_exact_sums_gets_7_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    for exact, largest in ((True, 127), (False, 64)):
        monkeypatch.setattr(onnx_export, "multiplies_int8_exactly", lambda exact=exact: exact)
        encoder, report = _export(precision="int8")
        assert report.seven_bits is not exact
        arrays = map(onnx.numpy_helper.to_array, onnx.load_from_string(encoder.model).graph.initializer)
        weights = [int(np.abs(array.astype(int)).max()) for array in arrays if array.dtype == np.int8 and array.ndim == 2]
        assert max(weights) == pytest.approx(largest, abs=1)


def test_tools_of_the_runtime_keep_quiet(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        _export()
    assert {record.name.split(".")[0] for record in caplog.records if record.levelno >= logging.INFO} <= {"reviewclf"}
    logging.getLogger().info("still heard")


# -- batches ---------------------------------------------------------------------------------------------------------


def test_batches_hold_texts_of_similar_length_within_the_budget() -> None:
    reader = TextReader(TOKENIZER, pad_id=9, max_length=64)
    seen: list[int] = []
    previous = 0
    for rows, inputs in reader.batches(TEXTS, tokens=100):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        assert ids.size <= 100
        assert ids.shape[1] >= previous
        assert mask.sum(axis=1).max() == ids.shape[1]
        assert (ids[mask == 0] == 9).all()
        for row, line, used in zip(rows, ids, mask.sum(axis=1), strict=True):
            assert line[:used].tolist() == tiny_tokenizer()(TEXTS[row])["input_ids"]
        previous = ids.shape[1]
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(TEXTS)))
    assert len(list(reader.batches(TEXTS, tokens=100))) < len(TEXTS) / 2


def test_text_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    found = [rows.tolist() for rows, _ in _reader().batches(TEXTS[:3], tokens=1)]
    assert sorted(map(len, found)) == [1, 1, 1]


def test_network_outputs_are_those_of_each_text_alone() -> None:
    found = network_outputs(tiny_network(), _reader(10), MIXED, "logits")
    assert np.allclose(found, torch_logits(tiny_network(), MIXED, max_length=10), atol=1e-4)
