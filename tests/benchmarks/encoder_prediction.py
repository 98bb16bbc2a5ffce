"""Prediction of an exported encoder against the notebook's way, and how long a single review takes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tests.benchmarks import ROOT, Measurement, interleaved, load_reviews

ARCHITECTURE = ROOT.parent / "shared" / "models" / "rubert-tiny2-architecture"
_CLASSES = 9
_MAX_LENGTH = 128
_REVIEWS = 1000
_SINGLE = 500
# What a single review may take, in milliseconds, by percentile.
_TARGETS = {50: 2.0, 99: 10.0}


def notebook_predictor(network: Any, tokenizer: Any, texts: list[str], folder: Path, *, padding: bool) -> Any:
    """Predict as the notebook does, ``Trainer.predict`` with 8 reviews a batch: the baseline.

    With `padding` all reviews are padded to the longest of them when they are tokenised, else each batch to its own.
    """
    from torch.utils.data import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    class Reviews(Dataset[Any]):
        def __init__(self) -> None:
            self.encoded = tokenizer(texts, truncation=True, max_length=_MAX_LENGTH, padding=padding)

        def __len__(self) -> int:
            return len(texts)

        def __getitem__(self, row: int) -> Any:
            return {name: values[row] for name, values in self.encoded.items()}

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_eval_batch_size=8, report_to=[], disable_tqdm=True, use_cpu=True
    )
    trainer = Trainer(model=network, args=arguments, data_collator=DataCollatorWithPadding(tokenizer))
    return lambda: trainer.predict(Reviews()).predictions.argmax(axis=1)  # type: ignore[arg-type, union-attr]


def measure() -> list[Measurement]:
    """Reviews per second of both (one run after warming up) and single reviews one after another."""
    if not ARCHITECTURE.exists():
        return []
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from reviewclf.training.encoder_classifier import EncoderClassifier
    from reviewclf.training.encoder_network import EncoderNetwork

    texts, source = load_reviews()
    texts = texts[:_REVIEWS]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ARCHITECTURE)
    config = AutoConfig.from_pretrained(ARCHITECTURE, num_labels=_CLASSES)
    theirs = AutoModelForSequenceClassification.from_config(config)
    classifier = EncoderClassifier.from_network(
        EncoderNetwork(theirs.base_model, classes=_CLASSES, pooling="mean"),
        tokenizer,
        classes=[str(position) for position in range(_CLASSES)],
        seen=list(range(_CLASSES)),
        prior=np.full(_CLASSES, 1 / _CLASSES),
        candidate={},
        texts=texts[:50],
        max_length=_MAX_LENGTH,
        precision="int8",  # random weights say nothing about which labels 8 bits change
    )
    note = f"{source}, {ARCHITECTURE.name} with random weights"
    throughput = []
    for padding, longest, target in ((True, "the longest of all", 10.0), (False, "the longest of each batch", None)):
        with tempfile.TemporaryDirectory() as folder:
            baseline, ours = interleaved(
                notebook_predictor(theirs.eval(), tokenizer, texts, Path(folder), padding=padding),
                lambda: classifier.predict_proba(texts),
                repeats=1,
            )
        throughput.append(
            Measurement(
                name="EncoderClassifier.predict_proba (int8)",
                rows=len(texts),
                baseline=len(texts) / baseline,
                ours=len(texts) / ours,
                note=f"{note}; against Trainer.predict, batch 8, padded to {longest}",
                target=target,
            )
        )
    seconds = [_seconds(classifier, texts[row % len(texts)]) for row in range(_SINGLE)]
    singles = []
    for percent, allowed in _TARGETS.items():
        found = float(np.percentile(seconds, percent)) * 1000
        singles.append(
            Measurement(
                name=f"single review, p{percent}",
                rows=_SINGLE,
                baseline=1000 / allowed,
                ours=1000 / found,
                note=f"{note}; {found:.2f} ms against at most {allowed:g} ms",
                target=1.0,
            )
        )
    return [*throughput, *singles]


def _seconds(classifier: Any, text: str) -> float:
    started = perf_counter()
    classifier.predict_proba([text])
    return perf_counter() - started
