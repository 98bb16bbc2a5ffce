"""The network that is fine-tuned: a pretrained encoder, pooled states, one linear layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch  # noqa: TID253 - this module is itself imported inside functions only
from torch import nn  # noqa: TID253

from reviewclf.errors import TrainingError

Pooling = Literal["mean", "cls"]

_WEIGHTS = "model.safetensors"
_HEAD = "head.json"


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

    def __init__(self, encoder: Any, *, classes: int, pooling: Pooling, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, classes)

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
