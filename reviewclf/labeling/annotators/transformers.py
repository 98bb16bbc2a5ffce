"""Votes by a language model in this process, read from one forward pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from reviewclf.errors import LabelingError
from reviewclf.labeling.annotators.base import Vote
from reviewclf.labeling.annotators.prompted import Floats, PromptedAnnotator, Request
from reviewclf.labeling.prompts import CONTENT_FREE, Question
from reviewclf.settings import LLMSettings
from reviewclf.taxonomy import Taxonomy

logger = logging.getLogger(__name__)

# What cannot stand in a review: marks where it goes in the chat template.
_HERE = "\ue000\ue001\ue000"
_MAX_BATCH = 256
_WRITTEN_TOKENS = 64


# Keys and values by layer, each of shape (1, heads, tokens, width).
_Past: TypeAlias = list[tuple[Any, Any]]


class _Frame(NamedTuple):
    """A question as tokens: what stands before every review, what stands after, and the tokens that begin each code."""

    prefix: list[int]
    suffix: list[int]
    codes: list[list[int]]


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
        self._loaded: tuple[Any, Any] | None = None
        self._frames: dict[tuple[str, int], _Frame] = {}
        self._pasts: dict[tuple[str, int], _Past] = {}
        self._priors: dict[tuple[str, int], Floats] = {}

    def use(self, model: Any, tokenizer: Any) -> TransformersAnnotator:
        """Take a model and tokenizer that are loaded already."""
        self._loaded = (model.eval(), tokenizer)
        return self

    def ask(self, requests: Sequence[Request]) -> Iterator[Vote]:
        """Votes question by question, in batches of similar length."""
        by_question: dict[tuple[str, int], list[Request]] = {}
        for request in requests:
            by_question.setdefault((request.question.name, request.question.draw), []).append(request)
        for group in by_question.values():
            if self.options.answer == "text":
                for request in group:
                    if self.may_ask(0):
                        yield self._write(request)
            else:
                yield from self._read(group)
                # The next question has a past of its own; on a GPU this one's memory is wanted back.
                self._pasts.clear()

    def shares(self, question: Question, texts: Sequence[str]) -> Floats:
        """Probabilities of the codes as the first token, of shape (n, k) over all n prepared texts; rows sum to at most 1."""
        frame = self._frame(question)
        rows = [self._review_tokens(text) + frame.suffix for text in texts]
        result = np.zeros((len(rows), len(frame.codes)))
        for batch in _batches(rows, self.options.batch_tokens):
            result[batch] = self._forward(question, [rows[i] for i in batch])
        return result

    # -- reading probabilities -------------------------------------------------------------------------------------------

    def _read(self, requests: Sequence[Request]) -> Iterator[Vote]:
        question = requests[0].question
        frame = self._frame(question)
        prior = self._prior(question) if self.options.calibrate else None
        rows = [self._review_tokens(request.text) + frame.suffix for request in requests]
        codes = list(question.labels)
        for batch in _batches(rows, self.options.batch_tokens):
            if not self.may_ask(0):
                return
            started = time.perf_counter()
            shares = self._forward(question, [rows[i] for i in batch])
            seconds = (time.perf_counter() - started) / len(batch)
            for i, row in zip(batch, shares, strict=True):
                costs = {"tokens_in": len(frame.prefix) + len(rows[i]), "tokens_out": 1, "seconds": seconds}
                yield self.vote_by_probabilities(requests[i], dict(zip(codes, map(float, row), strict=True)), prior, **costs)

    def _forward(self, question: Question, rows: Sequence[Sequence[int]]) -> Floats:
        """Probabilities of the codes after each row of tokens, which all follow the question's beginning; shape (n, k)."""
        import torch

        model, _ = self._load()
        frame = self._frame(question)
        ask = self._padded if _has_window(model.config) else self._packed
        with torch.inference_mode():
            probabilities = ask(model, self._past(question), len(frame.prefix), rows).float().softmax(dim=-1)
            shares = torch.stack([probabilities[:, tokens].sum(dim=-1) for tokens in frame.codes], dim=1)
        return np.asarray(shares.cpu().numpy(), dtype=np.float64)

    @staticmethod
    def _packed(model: Any, past: _Past, begun: int, rows: Sequence[Sequence[int]]) -> Any:
        """Logits after each row, all rows in one sequence: each sees the common past and itself, not the others.

        Nothing is padded, and the past is there once instead of once a row, which is where the time of a padded batch goes.
        """
        import torch
        from transformers import DynamicCache

        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.tensor([[token for row in rows for token in row]])
        owner = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        ends = lengths.cumsum(0)
        place = torch.arange(len(owner)) - (ends - lengths)[owner]
        own = (owner[:, None] == owner[None, :]) & (place[:, None] >= place[None, :])
        seen = torch.cat([torch.ones(len(owner), begun, dtype=torch.bool), own], dim=1)
        mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill_(~seen, torch.finfo(model.dtype).min)
        output = model(
            input_ids=ids.to(model.device),
            attention_mask=mask[None, None].to(model.device),
            position_ids=(place + begun)[None].to(model.device),
            past_key_values=DynamicCache(ddp_cache_data=past, config=model.config),
            use_cache=True,
            logits_to_keep=(ends - 1).to(model.device),
        )
        return output.logits[0]

    @staticmethod
    def _padded(model: Any, past: _Past, begun: int, rows: Sequence[Sequence[int]]) -> Any:
        """Logits after each row, one row each: for models with sliding windows, whose masks only they can make."""
        import torch
        from transformers import DynamicCache

        width, n = max(map(len, rows)), len(rows)
        # Padding stands between the common past and the review, so that every row's last token is its last column.
        ids = torch.zeros((n, width), dtype=torch.long)
        mask = torch.zeros((n, begun + width), dtype=torch.long)
        mask[:, :begun] = 1
        positions = torch.zeros((n, width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row)
            mask[i, begun + width - len(row) :] = 1
            positions[i, width - len(row) :] = torch.arange(begun, begun + len(row))
        repeated = [(keys.expand(n, -1, -1, -1), values.expand(n, -1, -1, -1)) for keys, values in past]
        output = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions.to(model.device),
            past_key_values=DynamicCache(ddp_cache_data=repeated, config=model.config),
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _past(self, question: Question) -> _Past:
        """Keys and values of the question's constant beginning, one pair a layer, for one row."""
        import torch

        key = (question.name, question.draw)
        if key not in self._pasts:
            model, _ = self._load()
            frame = self._frame(question)
            with torch.inference_mode():
                output = model(input_ids=torch.tensor([frame.prefix], device=model.device), use_cache=True, logits_to_keep=1)
            self._pasts[key] = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        return self._pasts[key]

    def _prior(self, question: Question) -> Floats:
        key = (question.name, question.draw)
        if key not in self._priors:
            self._priors[key] = self.shares(question, CONTENT_FREE).mean(axis=0)
        return self._priors[key]

    # -- writing, as the notebook did --------------------------------------------------------------------------------------

    def _write(self, request: Request) -> Vote:
        import torch

        model, tokenizer = self._load()
        frame = self._frame(request.question)
        ids = [*frame.prefix, *self._review_tokens(request.text), *frame.suffix]
        torch.manual_seed(self._seed + request.question.draw)
        started = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor([ids], device=model.device),
                attention_mask=torch.ones((1, len(ids)), dtype=torch.long, device=model.device),
                max_new_tokens=_WRITTEN_TOKENS + self.options.room_for_thoughts,
                do_sample=True,
                temperature=0.7,
                top_p=0.9,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        written = output[0, len(ids) :]
        answer, is_cut = decoded(model, tokenizer, written)
        return self.vote_by_text(
            request,
            answer,
            is_cut=is_cut,
            tokens_in=len(ids),
            tokens_out=len(written),
            seconds=time.perf_counter() - started,
        )

    # -- model and tokens ----------------------------------------------------------------------------------------------------

    def _frame(self, question: Question) -> _Frame:
        key = (question.name, question.draw)
        if key not in self._frames:
            _, tokenizer = self._load()
            whole = self._rendered(question)
            before, _, after = whole.partition(_HERE)
            prefix = tokenizer(before, add_special_tokens=False)["input_ids"]
            # A template brings its own beginning; without one the tokenizer's own special tokens begin the text.
            if not tokenizer.chat_template and tokenizer.bos_token_id is not None:
                prefix = [tokenizer.bos_token_id, *prefix]
            suffix = tokenizer(after, add_special_tokens=False)["input_ids"]
            self._frames[key] = _Frame(list(prefix), list(suffix), [self._code_tokens(code) for code in question.labels])
        return self._frames[key]

    def _rendered(self, question: Question) -> str:
        _, tokenizer = self._load()
        if not tokenizer.chat_template:
            return f"{question.system}\n\n{question.user(_HERE)}"
        # Templates of models that do not think leave it unread. The first token of a thought is no answer, so that where
        # probabilities are read there must not be one.
        thinking = {"enable_thinking": self.options.thinking == "on" and self.options.answer == "text"}
        messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.user(_HERE)}]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **thinking)
        except Exception:  # templates raise what they like when they know no system message
            joined = [{"role": "user", "content": f"{question.system}\n\n{question.user(_HERE)}"}]
            text = tokenizer.apply_chat_template(joined, tokenize=False, add_generation_prompt=True, **thinking)
        if str(text).count(_HERE) != 1:
            raise LabelingError(f"the chat template of {self.options.model} does not repeat the user's message as it is")
        return str(text)

    def _code_tokens(self, code: str) -> list[int]:
        """Tokens that stand for a code at the beginning of an answer: bare, and after a space."""
        _, tokenizer = self._load()
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
        _, tokenizer = self._load()
        # A review that spells a special token gets its letters, not the token.
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = load_model(self.options)
        return self._loaded


def decoded(model: Any, tokenizer: Any, tokens: Any) -> tuple[str, bool]:
    """What a model has written, and whether it was cut before its end.

    Special tokens are left in: some models mark their thoughts by them.
    """
    ends = model.generation_config.eos_token_id
    stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    written = [int(token) for token in tokens]
    length = next((place for place, token in enumerate(written) if token in stops), None)
    return str(tokenizer.decode(written[:length], skip_special_tokens=False)), length is None


def load_model(options: LLMSettings) -> tuple[Any, Any]:
    """Model and tokenizer that the settings name, ready to be asked.

    Raises
    ------
    LabelingError
        They cannot be loaded; the message says how to get them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gpu = torch.cuda.is_available() if options.device == "auto" else options.device.startswith("cuda")
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}.get(
        options.dtype, torch.bfloat16 if gpu else torch.float32
    )
    if not gpu:
        logger.warning("no GPU is used: %s runs on the CPU with %d threads", options.model, torch.get_num_threads())
    arguments: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    if gpu and options.device == "auto":
        arguments["device_map"] = "auto"
    if options.quantization == "4bit":
        arguments["quantization_config"] = _four_bit(dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model, revision=options.revision, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(options.model, revision=options.revision, **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise LabelingError(
            f"{options.model}: cannot be loaded ({' '.join(str(error).split())[:200]}). Get it with "
            f"`hf download {options.model}`, or set REVIEWCLF_LLM__MODEL to a local folder"
        ) from error
    if "device_map" not in arguments and options.quantization == "none":
        model = model.to("cpu" if options.device == "auto" else options.device)
    return model.eval(), tokenizer


def _has_window(config: Any) -> bool:
    """Whether some layer sees only the last tokens."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return bool(getattr(config, "sliding_window", None))


def _four_bit(dtype: Any) -> Any:
    import importlib.util

    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise LabelingError(
            "REVIEWCLF_LLM__QUANTIZATION=4bit needs the package bitsandbytes: pip install bitsandbytes, or set it to none"
        )
    config: Any = BitsAndBytesConfig
    return config(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")


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
