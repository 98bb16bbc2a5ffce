"""Reviews as an encoder reads them: tokens, their order, batches, and what a network is worth on validation rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch  # noqa: TID253 - this module is itself imported inside functions only
from numpy.typing import NDArray
from torch import nn  # noqa: TID253

from reviewclf.errors import TrainingError
from reviewclf.training.candidates import EncoderParams
from reviewclf.training.encoder_network import EncoderNetwork
from reviewclf.training.linear import _check_columns
from reviewclf.training.losses import NEVER, class_weights, cross_entropy
from reviewclf.training.onnx_session import encoder_text

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_EVALUATION_ROWS = 64
# Reviews are sorted by length among this many batches: enough that the rows of a batch are alike, few enough that what lies
# together changes from epoch to epoch.
_GROUPED_BATCHES = 50
# The padding token must keep its id, since some encoders know it from their configuration; the ids below it stay with it.
_LARGEST_PAD_ID = 1000


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut off after `max_length`."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False, return_attention_mask=False)
    return [list(map(int, ids)) for ids in encoded["input_ids"]]


def row_weights(params: EncoderParams, target: Integers, weights: Floats, classes: int) -> Floats:
    """Weight of each row's loss, 1 on average, so that neither shares nor confidences change the scale of the loss."""
    result = weights
    if params.loss == "weighted_ce" or params.alpha:
        result = weights * class_weights(target, weights, classes=classes, power=params.class_weight_power)[target]
    return result / float(result.mean())


class SmallVocabulary:
    """A network's token embeddings cut to the tokens that occur, until :meth:`restore`.

    Tokens that do not occur get no gradient, so training with or without them comes to the same, but for their weight decay.

    Parameters
    ----------
    network : EncoderNetwork
        Changed in place. Left as it is if its embeddings are of a kind of their own.
    tokens : list of list of int
        All texts that it will see.
    pad_id : int
        Keeps its number.
    """

    def __init__(self, network: EncoderNetwork, tokens: Sequence[Sequence[int]], pad_id: int) -> None:
        self._body = network.encoder
        self._full: nn.Embedding | None = None
        full = self._body.get_input_embeddings()
        if type(full) is not nn.Embedding or pad_id > _LARGEST_PAD_ID:
            return
        used = np.unique(np.concatenate([np.arange(pad_id + 1), *map(np.asarray, tokens)])).astype(np.int64)
        if len(used) == full.num_embeddings:
            return
        small = nn.Embedding(len(used), full.embedding_dim, padding_idx=full.padding_idx, dtype=full.weight.dtype)
        small.weight.data.copy_(full.weight.data[used])
        self._body.set_input_embeddings(small)
        self._full, self._used = full, used
        self._position = np.full(full.num_embeddings, -1)
        self._position[used] = np.arange(len(used))

    def translate(self, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """Token ids in the network's present vocabulary."""
        if self._full is None:
            return [list(ids) for ids in tokens]
        return [self._position[np.asarray(ids)].tolist() for ids in tokens]

    def restore(self) -> None:
        """Put the full vocabulary back, with what was learned."""
        if self._full is not None:
            self._full.weight.data[self._used] = self._body.get_input_embeddings().weight.data.to(self._full.weight.device)
            self._body.set_input_embeddings(self._full)
            self._full = None


class HeldOut:
    """Validation rows: their tokens, and what a network is worth on them.

    Parameters
    ----------
    title : str
        For errors.
    frame : DataFrame
        Columns ``text_clean``, ``label``, ``weight``.
    classes : sequence of str, length k
    """

    def __init__(self, title: str, frame: pd.DataFrame, classes: Sequence[str]) -> None:
        _check_columns(title, "validation", frame)
        position = {label: column for column, label in enumerate(classes)}
        self.size = len(frame)
        for row, label in enumerate(frame["label"]):
            if label not in position:
                raise TrainingError(f"{title}: validation, row {row}, column label: {label!r} is no category of the taxonomy")
        cleaned = [encoder_text(text) for text in frame["text_clean"]]
        self._rows = [row for row, text in enumerate(cleaned) if text]
        self._classes = len(classes)
        self.texts = [cleaned[row] for row in self._rows]
        self._labels: Integers = np.array([position[label] for label in frame["label"]], dtype=np.int64)
        self.tokens: list[list[int]] = []

    def content(self) -> list[Any]:
        """All that scores depend on."""
        return [self.tokens, self._labels[self._rows].tolist()]

    def logits(self, network: EncoderNetwork, pad_id: int) -> Floats:
        """Answers on rows with a text, in 32 bits whatever the precision of training: shape (rows with a text, k)."""
        device = next(network.parameters()).device
        order = sorted(range(len(self.tokens)), key=lambda row: len(self.tokens[row]))
        result = np.empty((len(order), self._classes))
        training = network.training
        network.eval()
        with torch.no_grad():
            for start in range(0, len(order), _EVALUATION_ROWS):
                batch = order[start : start + _EVALUATION_ROWS]
                ids, mask = pad([self.tokens[row] for row in batch], pad_id)
                # The class's own forward: accelerate puts another one, in lower precision, on the network.
                answer = EncoderNetwork.forward(network, ids.to(device), mask.to(device))
                result[batch] = answer.float().cpu().numpy()
        network.train(training)
        return result

    def all_logits(self, network: EncoderNetwork, pad_id: int, prior: Floats) -> Floats:
        """Answers on all rows, those without a text included."""
        result = np.tile(np.where(prior > 0, np.log(np.maximum(prior, 1e-300)), NEVER), (self.size, 1))
        result[self._rows] = self.logits(network, pad_id)
        return result

    def scores(self, logits: Floats, seen: Sequence[int]) -> dict[str, float]:
        """Loss (without weights, rows of unseen classes left out), weighted and macro F1 on rows with a text."""
        from sklearn.metrics import f1_score

        labels = self._labels[self._rows]
        masked = np.full_like(logits, NEVER)
        masked[:, list(seen)] = logits[:, list(seen)]
        predicted = masked.argmax(axis=1)
        known = np.isin(labels, list(seen))
        loss = math.nan
        if known.any():
            rows = cross_entropy(torch.from_numpy(logits[known]), torch.from_numpy(labels[known]), seen=seen)
            loss = float(rows.mean())
        arguments: dict[str, Any] = {"labels": np.unique(labels), "zero_division": 0}
        return {
            "validation_loss": loss,
            "weighted_f1": float(f1_score(labels, predicted, average="weighted", **arguments)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", **arguments)),
        }


def pad(tokens: Sequence[Sequence[int]], pad_id: int, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of shape (n, longest text, rounded up to a multiple of `multiple`)."""
    width = -(-max(map(len, tokens)) // multiple) * multiple
    ids = np.full((len(tokens), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(tokens), width), dtype=np.int64)
    for row, text in enumerate(tokens):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class GroupedSampler(torch.utils.data.Sampler[int]):
    """Rows in random order, so that those of a batch are of similar length; the order depends on seed and epoch alone.

    Parameters
    ----------
    lengths : sequence of int, length n
    batch_size : int
        Rows that are padded together.
    seed : int
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the data loader calls it before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self._seed, self._epoch])
        order = random.permutation(len(self._lengths))
        size = self._batch_size * _GROUPED_BATCHES
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        batches = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        # A batch that is not full goes last: elsewhere it would shift all that follow.
        rest = [batches.pop()] if len(batches[-1]) < self._batch_size else []
        random.shuffle(batches)
        yield from map(int, np.concatenate([*batches, *rest]))
