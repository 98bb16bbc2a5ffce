"""Fine-tuning an encoder against Trainer alone, with its two ways of padding: steps per second."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from tests.benchmarks import Measurement, load_reviews
from tests.benchmarks.encoder_prediction import ARCHITECTURE

_CLASSES = [str(number) for number in range(9)]
_MAX_LENGTH = 128
_BATCH, _ACCUMULATION = 8, 2
_REVIEWS = 640


def trainer_alone(folder: Path, texts: list[str], labels: list[int], scratch: Path, *, grouped: bool) -> float:
    """Seconds of an epoch of Trainer without anything of ours.

    With `grouped` reviews of similar length are padded to the longest of each batch; else all to 128 tokens, as the notebook
    does.
    """
    import torch
    from torch.utils.data import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(texts, truncation=True, padding=False if grouped else "max_length", max_length=_MAX_LENGTH)
    weights = torch.ones(len(_CLASSES))

    class Reviews(Dataset[Any]):
        def __len__(self) -> int:
            return len(texts)

        def __getitem__(self, row: int) -> Any:
            return {**{name: values[row] for name, values in encoded.items()}, "labels": labels[row]}

    class WeightedTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            target = inputs.pop("labels")
            outputs = model(**inputs)
            loss = torch.nn.functional.cross_entropy(outputs.logits, target, weight=weights)
            return (loss, outputs) if return_outputs else loss

    class Clock(TrainerCallback):
        seconds = started = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.started = perf_counter()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.seconds += perf_counter() - self.started

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=_BATCH,
        gradient_accumulation_steps=_ACCUMULATION,
        num_train_epochs=1,
        learning_rate=2e-5,
        weight_decay=0.01,
        warmup_steps=0.1,
        train_sampling_strategy="group_by_length" if grouped else "random",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(_CLASSES))
    WeightedTrainer(
        model=model,
        args=arguments,
        train_dataset=Reviews(),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    ).train()
    return clock.seconds


def measure() -> list[Measurement]:
    """Steps per second, one way after the other in one run; a step is 16 reviews in each."""
    if not ARCHITECTURE.exists():
        return []
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from reviewclf.training.encoder_params import EncoderParams
    from reviewclf.training.finetuning import fine_tune
    from reviewclf.training.rows import TrainingJob

    texts, source = load_reviews()
    texts = [text for text in texts if text.strip()][:_REVIEWS]
    labels = [row % len(_CLASSES) for row in range(len(texts))]
    rows = pd.DataFrame({"text_clean": texts, "label": [_CLASSES[label] for label in labels], "weight": 1.0})
    params = EncoderParams(checkpoint="encoder", epochs=1, batch_size=_BATCH, gradient_accumulation=_ACCUMULATION)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "encoder"
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.from_pretrained(ARCHITECTURE)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(ARCHITECTURE).save_pretrained(folder)
        steps = len(texts) / (_BATCH * _ACCUMULATION)
        job = TrainingJob(rows, rows.head(0), classes=_CLASSES, encoders=Path(name))
        ours = steps / fine_tune("benchmark", params, job).history[0]["seconds"]
        baselines = {
            padded: steps / trainer_alone(folder, texts, labels, Path(name) / "scratch", grouped=grouped)
            for padded, grouped in (("to 128 tokens", False), ("to its length-grouped batch", True))
        }
    return [
        Measurement(
            name="fine-tuning, steps",
            rows=len(texts),
            baseline=baseline,
            ours=ours,
            note=f"{source}, {ARCHITECTURE.name} with random weights; against Trainer, every review padded {padded}",
            target=3.0 if padded == "to 128 tokens" else None,
        )
        for padded, baseline in baselines.items()
    ]
