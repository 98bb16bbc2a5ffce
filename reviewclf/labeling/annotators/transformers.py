"""Votes by a language model in this process, read from one forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np

from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.base import Vote
from reviewclf.labeling.annotators.prompted import Floats, PromptedAnnotator, Request
from reviewclf.labeling.prompts import CONTENT_FREE, Question
from reviewclf.llm.local import LocalModel
from reviewclf.llm.replies import Reply
from reviewclf.settings import LLMSettings, Settings
from reviewclf.taxonomy import Taxonomy

# What cannot stand in a review: marks where it goes in the chat template.
_HERE = "\ue000\ue001\ue000"
_MAX_BATCH = 256
_WRITTEN_TOKENS = 64

# Keys and values by layer, each of shape (1, heads, tokens, width).
_Past: TypeAlias = list[tuple[Any, Any]]


@dataclass
class _Frame:
    """A question as tokens: what stands before every review, what stands after, and the tokens that begin each code.

    Also the model's past after the prefix, while it is needed, and its prior: shares of the codes without a review.
    """

    prefix: list[int]
    suffix: list[int]
    codes: list[list[int]]
    past: _Past | None = None
    prior: Floats | None = None


class TransformersAnnotator(PromptedAnnotator):
    """Reads the category from the probabilities of the answer's first token.

    The constant beginning of a question (instructions, categories) goes through the model once; its key-value cache is the
    common past of all reviews, which follow in batches of similar length. A review costs one pass over its own tokens:
    no text is generated. With ``answer = text`` an answer is sampled instead, as long as 64 tokens, for comparison.

    Parameters
    ----------
    options : LLMSettings
        ``model``, ``revision``, ``device``, ``dtype``, ``quantization``, ``batch_tokens``.
    taxonomy : Taxonomy
        The categories.
    seed : int
        Of sampled answers.

    Raises
    ------
    LabelingError
        When asked: the model cannot be loaded, or its tokenizer does not write each code as one token.
    """

    def __init__(self, options: LLMSettings, taxonomy: Taxonomy, *, seed: int = 42) -> None:
        super().__init__(options, taxonomy)
        self._seed = seed
        self._model = LocalModel(options)
        self._frames: dict[tuple[str, int], _Frame] = {}

    def use(self, model: Any, tokenizer: Any) -> Self:
        """Take a model and tokenizer that are loaded already."""
        self._model.use(model, tokenizer)
        return self

    def ask(self, requests: Sequence[Request]) -> Iterator[Vote]:
        """Votes question by question, in batches of similar length."""
        by_question: dict[tuple[str, int], list[Request]] = {}
        for request in requests:
            by_question.setdefault((request.question.name, request.question.draw), []).append(request)
        for group in by_question.values():
            if self.options.answer == "text":
                for request in group:
                    if self.budget.may_ask(0):
                        yield self._write(request)
            else:
                yield from self._read(group)

    def shares(self, question: Question, texts: Sequence[str]) -> Floats:
        """Probabilities of the codes as the first token, of shape (n, k) over all n prepared texts; rows sum to at most 1."""
        frame = self._frame(question)
        rows = [self._review_tokens(text) + frame.suffix for text in texts]
        result = np.zeros((len(rows), len(frame.codes)))
        for batch in _batches(rows, self.options.batch_tokens):
            result[batch] = self._forward(frame, [rows[i] for i in batch])
        return result

    def _read(self, requests: Sequence[Request]) -> Iterator[Vote]:
        question = requests[0].question
        frame = self._frame(question)
        if self.options.calibrate and frame.prior is None:
            frame.prior = self.shares(question, CONTENT_FREE).mean(axis=0)
        rows = [self._review_tokens(request.text) + frame.suffix for request in requests]
        for batch in _batches(rows, self.options.batch_tokens):
            if not self.budget.may_ask(0):
                return
            started = time.perf_counter()
            shares = self._forward(frame, [rows[i] for i in batch])
            seconds = (time.perf_counter() - started) / len(batch)
            for i, row in zip(batch, shares.tolist(), strict=True):
                cost = Reply("", tokens_in=len(frame.prefix) + len(rows[i]), tokens_out=1, seconds=seconds)
                by_code = dict(zip(question.labels, row, strict=True))
                yield self.vote_by_probabilities(requests[i], cost, by_code, frame.prior)
        # The next question has a past of its own; on a GPU this one's memory is wanted back.
        frame.past = None

    def _forward(self, frame: _Frame, rows: Sequence[Sequence[int]]) -> Floats:
        """Probabilities of the codes after each row of tokens, which all follow the question's beginning; shape (n, k)."""
        import torch
        from transformers import DynamicCache

        model, _ = self._model.load()
        with torch.inference_mode():
            if frame.past is None:
                begun = model(input_ids=torch.tensor([frame.prefix], device=model.device), use_cache=True, logits_to_keep=1)
                frame.past = [(layer.keys, layer.values) for layer in begun.past_key_values.layers]
            lay_out = _padded if _has_window(model.config) else _packed
            inputs, past, kept = lay_out(rows, frame.past, len(frame.prefix), model.dtype)
            output = model(
                **{name: tensor.to(model.device) for name, tensor in inputs.items()},
                past_key_values=DynamicCache(ddp_cache_data=past, config=model.config),
                use_cache=True,
                logits_to_keep=kept,
            )
            probabilities = output.logits.flatten(0, 1).float().softmax(dim=-1)
            shares = torch.stack([probabilities[:, tokens].sum(dim=-1) for tokens in frame.codes], dim=1)
        return np.asarray(shares.cpu().numpy(), dtype=np.float64)

    def _write(self, request: Request) -> Vote:
        frame = self._frame(request.question)
        tokens = [*frame.prefix, *self._review_tokens(request.text), *frame.suffix]
        seed = self._seed + request.question.draw
        reply = self._model.write(tokens, room=_WRITTEN_TOKENS, temperature=0.7, top_p=0.9, seed=seed)
        return self.vote_by_text(request, reply)

    def _frame(self, question: Question) -> _Frame:
        key = (question.name, question.draw)
        if key not in self._frames:
            # The first token of a thought is no answer, so that where probabilities are read there must not be one.
            thinking = self.options.thinking == "on" and self.options.answer == "text"
            text = self._model.render(question.system, question.user(_HERE), thinking=thinking)
            if text.count(_HERE) != 1:
                raise LabelingError(f"the chat template of {self.options.model} does not repeat the user's message as it is")
            _, tokenizer = self._model.load()
            prefix, suffix = (list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in text.split(_HERE))
            # A template brings its own beginning; without one the tokenizer's own special tokens begin the text.
            if not tokenizer.chat_template and tokenizer.bos_token_id is not None:
                prefix = [tokenizer.bos_token_id, *prefix]
            self._frames[key] = _Frame(prefix, suffix, [self._code_tokens(code) for code in question.labels])
        return self._frames[key]

    def _code_tokens(self, code: str) -> list[int]:
        """Tokens that stand for a code at the beginning of an answer: bare, and after a space."""
        _, tokenizer = self._model.load()
        found = set()
        for written in (code, f" {code}"):
            tokens = tokenizer(written, add_special_tokens=False)["input_ids"]
            if len(tokens) == 1 and tokenizer.decode(tokens).strip() == code:
                found.add(int(tokens[0]))
        if not found:
            raise LabelingError(
                f"the tokenizer of {self.options.model} does not write {code!r} as one token, so none can be read; "
                "set REVIEWCLF_LLM__ANSWER=text or another REVIEWCLF_LLM__MODEL"
            )
        return sorted(found)

    def _review_tokens(self, text: str) -> list[int]:
        _, tokenizer = self._model.load()
        # A review that spells a special token gets its letters, not the token.
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def from_settings(settings: Settings, taxonomy: Taxonomy) -> TransformersAnnotator:
    """The annotator of ``REVIEWCLF_LLM__BACKEND=transformers``."""
    return TransformersAnnotator(settings.llm, taxonomy, seed=settings.seed)


def _packed(rows: Sequence[Sequence[int]], past: _Past, begun: int, dtype: Any) -> tuple[dict[str, Any], _Past, Any]:
    """All rows in one sequence: each sees the common past and itself, not the others. Also the past, and which logits to keep.

    Nothing is padded, and the past is there once instead of once a row, which is where the time of a padded batch goes.
    """
    import torch

    lengths = torch.tensor([len(row) for row in rows])
    owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    ends = lengths.cumsum(0)
    place = torch.arange(len(owner)) - (ends - lengths)[owner]
    own = (owner[:, None] == owner[None, :]) & (place[:, None] >= place[None, :])
    seen = torch.cat([torch.ones(len(owner), begun, dtype=torch.bool), own], dim=1)
    inputs = {
        "input_ids": torch.tensor([[token for row in rows for token in row]]),
        "attention_mask": torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[None, None],
        "position_ids": (place + begun)[None],
    }
    return inputs, past, (ends - 1).to(past[0][0].device)


def _padded(rows: Sequence[Sequence[int]], past: _Past, begun: int, _dtype: Any) -> tuple[dict[str, Any], _Past, Any]:
    """One row each, as :func:`_packed` answers: for models with sliding windows, whose masks only they can make."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    # Padding stands between the common past and the review, so that every row's last token is its last column.
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side="left")
    is_real = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True, padding_side="left")
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([torch.ones(len(rows), begun, dtype=torch.long), is_real], dim=1),
        "position_ids": (is_real.cumsum(1) - 1 + begun) * is_real,
    }
    repeated = [(keys.expand(len(rows), -1, -1, -1), values.expand(len(rows), -1, -1, -1)) for keys, values in past]
    return inputs, repeated, 1


def _has_window(config: Any) -> bool:
    """Whether some layer sees only the last tokens."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return bool(getattr(config, "sliding_window", None))


def _batches(rows: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Positions of rows in batches of similar length whose padded size is at most `budget` tokens."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (len(rows[i]), i)):
        if batch and ((len(batch) + 1) * len(rows[i]) > budget or len(batch) >= _MAX_BATCH):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
