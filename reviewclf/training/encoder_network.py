"""The network that is fine-tuned: a pretrained encoder, pooled states, one linear layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this module is itself imported inside functions only
from torch import nn  # noqa: TID253

from reviewclf.errors import TrainingError

_WEIGHTS = "model.safetensors"
_HEAD = "head.json"
# The padding token must keep its id, since some encoders know it from their configuration; the ids below it stay with it.
_LARGEST_PAD_ID = 1000


class EncoderNetwork(nn.Module):
    """Logits of k categories from token ids.

    Parameters
    ----------
    encoder : transformers.PreTrainedModel
        Body without a head; its first output are token states of shape (n, tokens, width).
    classes : int
        k.
    pooling : {"mean", "cls"}
        Average of the states of all real tokens, or the first token's state. A checkpoint's own pooler is not used: many have
        none that was trained.
    dropout : float
        Share of pooled features dropped in training.
    """

    def __init__(self, encoder: Any, *, classes: int, pooling: str, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler.requires_grad_(False)  # else distributed training waits for its gradients

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask of shape (n, tokens) to logits of shape (n, k)."""
        return self.head(self.dropout(self.pooled(input_ids, attention_mask)))  # type: ignore[no-any-return]

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Pooled states of shape (n, width)."""
        states: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        if self.pooling == "cls":
            return states[:, 0]
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)

    def check_length(self, max_length: int, *, title: str = "encoder", tokenizer: Any = None) -> None:
        """Whether the encoder, and its tokenizer if it is given, read texts of `max_length` tokens.

        Raises
        ------
        TrainingError
            They do not; the message says how many they read.
        """
        usable: int = getattr(self.encoder.config, "max_position_embeddings", None) or max_length
        # RoBERTa's kind counts positions from the one after the padding token's number.
        table: Any = getattr(getattr(self.encoder, "embeddings", None), "position_embeddings", None)
        if getattr(table, "padding_idx", None) is not None:
            usable -= table.padding_idx + 1
        usable = min(usable, getattr(tokenizer, "model_max_length", usable))
        if max_length > usable:
            raise TrainingError(f"{title}: max_length: {max_length}, but the encoder reads {usable} tokens at most; lower it")

    def save(self, folder: Path) -> None:
        """Write ``config.json`` of the body, ``head.json`` and all weights as ``model.safetensors``."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.encoder.config.save_pretrained(folder)
        shape = {"classes": self.head.out_features, "pooling": self.pooling, "dropout": self.dropout.p}
        (folder / _HEAD).write_text(json.dumps(shape), encoding="utf-8")
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()}, folder / _WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> EncoderNetwork:
        """Read what :meth:`save` wrote.

        Raises
        ------
        TrainingError
            Files are missing or do not fit together.
        """
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModel

        try:
            shape = json.loads((folder / _HEAD).read_text(encoding="utf-8"))
            auto: Any = AutoModel
            body = auto.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
            network = cls(body, **shape)
            network.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise TrainingError(f"{folder}: is no saved encoder ({error!r:.200}); train it anew") from error
        return network.eval()


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

    def translate(self, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """Token ids in the network's present vocabulary."""
        if self._full is None:
            return [list(ids) for ids in tokens]
        return [np.searchsorted(self._used, ids).tolist() for ids in tokens]

    def restore(self) -> None:
        """Put the full vocabulary back, with what was learned."""
        if self._full is not None:
            self._full.weight.data[self._used] = self._body.get_input_embeddings().weight.data.to(self._full.weight.device)
            self._body.set_input_embeddings(self._full)
            self._full = None
