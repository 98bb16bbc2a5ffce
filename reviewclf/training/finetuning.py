"""Fine-tuning of pretrained encoders.

What makes it fast on short texts: batches of reviews of similar length, and a vocabulary cut to the tokens that occur. Without
that, most of a small multilingual encoder's step goes into the optimizer state of tokens whose gradient is 0. Both change the
speed only; the full vocabulary is back in the trained network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is itself imported inside functions only
import transformers  # noqa: TID253

from reviewclf.training.checkpoints import load_checkpoint, quiet_transformers, resolve_checkpoint
from reviewclf.training.encoder_network import EncoderNetwork, SmallVocabulary
from reviewclf.training.encoder_params import EncoderParams
from reviewclf.training.losses import NEVER
from reviewclf.training.rows import TrainingJob, TrainingRows, class_weights
from reviewclf.training.scratch import scratch
from reviewclf.training.tuner import Tuner, epochs_of

Tokens = list[list[int]]


@dataclass(frozen=True)
class TunedEncoder:
    """What fine-tuning ends with.

    Attributes
    ----------
    network : EncoderNetwork
        Of the best epoch, on the CPU, in evaluation mode, with one output for each class; those of classes without training
        rows never win.
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the checkpoint.
    rows : TrainingRows
        What it was trained on.
    history : list of dict
        One entry an epoch: ``epoch``, ``train_loss``, ``learning_rate``, ``seconds``, and with validation rows
        ``validation_loss``, ``weighted_f1`` and ``macro_f1``.
    best_epoch : int
        From 1: the first with the best weighted F1 on validation; without validation rows the last.
    device : str
        Where it was trained.
    figures : dict of str to float
        ``steps_per_second`` and ``samples_per_second`` of this process, evaluation and checkpoints included.
    """

    network: EncoderNetwork
    tokenizer: Any
    rows: TrainingRows
    history: list[dict[str, float]]
    best_epoch: int
    device: str
    figures: dict[str, float]


def fine_tune(title: str, params: EncoderParams, job: TrainingJob) -> TunedEncoder:
    """Fine-tune a pretrained encoder.

    A call that was killed is taken up again from what lies in the job's scratch folder and ends with the same network and
    history; what another job left there is removed, and nothing is left after success.

    Raises
    ------
    EncoderUnavailableError
        The checkpoint is neither here nor on a hub that can be reached.
    TrainingError
        The rows cannot be trained on, or the candidate's settings do not work out.
    """
    rows = job.training_rows(title, min_weight=params.min_weight)
    validation = job.validation_rows(title)
    source = resolve_checkpoint(params.checkpoint, job.encoders)
    with quiet_transformers():
        transformers.set_seed(job.seed)
        body, tokenizer = load_checkpoint(source, title)
        transformers.set_seed(job.seed)
        network = EncoderNetwork(body, classes=len(job.classes), pooling=params.pooling, dropout=params.dropout)
        network.check_length(params.max_length, title=title, tokenizer=tokenizer)
        tokens = _tokenize(tokenizer, rows.texts, params.max_length)
        held_out_tokens = _tokenize(tokenizer, [text for text, _ in validation], params.max_length)
        vocabulary = SmallVocabulary(network, [*tokens, *held_out_tokens], tokenizer.pad_token_id)
        weights = rows.weights
        if params.loss == "weighted_ce" or params.alpha:
            by_class = class_weights(rows.target, weights, classes=len(job.classes), power=params.class_weight_power)
            weights = weights * by_class[rows.target]
        # 1 on average, so that neither shares nor confidences change the scale of the loss.
        examples = _examples(vocabulary.translate(tokens), rows.target, weights / weights.mean())
        held_out = _examples(vocabulary.translate(held_out_tokens), [label for _, label in validation], [1.0] * len(validation))
        # Sorted by length, so that little is padded.
        held_out.sort(key=lambda row: len(row["input_ids"]))
        content = [params.model_dump_json(exclude={"save_steps"}), job.seed, examples, held_out]
        with scratch(job.checkpoints, content, network) as folder:
            tuner = Tuner(title, params, network, tokenizer, examples, held_out, rows.seen, folder=folder, job=job)
            figures = tuner.run()
    vocabulary.restore()
    with torch.no_grad():
        unseen = [column for column in range(len(job.classes)) if column not in rows.seen]
        network.head.weight[unseen] = 0.0
        network.head.bias[unseen] = NEVER
    history = epochs_of(tuner.state.log_history)
    scores = [entry.get("weighted_f1", entry["epoch"]) for entry in history]
    return TunedEncoder(network, tokenizer, rows, history, 1 + int(np.argmax(scores)), str(tuner.args.device), figures)


def _tokenize(tokenizer: Any, texts: list[str], max_length: int) -> Tokens:
    """Token ids of each text, special tokens included, cut off after `max_length`."""
    return tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []


def _examples(tokens: Tokens, labels: Any, weights: Any) -> list[dict[str, Any]]:
    return [
        {"input_ids": ids, "labels": int(label), "weights": float(weight)}
        for ids, label, weight in zip(tokens, labels, weights, strict=True)
    ]
