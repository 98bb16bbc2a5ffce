"""Reviews written by a language model in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from reviewclf.augmentation.generators.base import Written
from reviewclf.augmentation.prompts import WritingRequest, parse_reviews
from reviewclf.labeling.annotators.transformers import decoded, load_model
from reviewclf.settings import AugmentationSettings, LLMSettings


class TransformersGenerator:
    """Samples answers one request at a time; the same request, model and machine give the same answer.

    Parameters
    ----------
    options : LLMSettings
        ``model``, ``revision``, ``device``, ``dtype``, ``quantization``.
    writing : AugmentationSettings
        ``temperature``, ``tokens_per_review``.

    Raises
    ------
    LabelingError
        When asked: the model cannot be loaded.
    """

    def __init__(self, options: LLMSettings, writing: AugmentationSettings) -> None:
        self._options = options
        self._writing = writing
        self._loaded: tuple[Any, Any] | None = None

    def use(self, model: Any, tokenizer: Any) -> TransformersGenerator:
        """Take a model and tokenizer that are loaded already."""
        self._loaded = (model.eval(), tokenizer)
        return self

    @property
    def version(self) -> str:
        """Model and temperature."""
        return f"{self._options.model}@{self._options.revision}/t{self._writing.temperature:g}"

    @property
    def is_costly(self) -> bool:
        """Yes."""
        return True

    def available(self, category: str) -> None:
        """As many as are asked for."""

    def write(self, requests: Sequence[WritingRequest]) -> Iterator[Written]:
        """Answers in the order of the requests."""
        for request in requests:
            yield self._write(request)

    def _write(self, request: WritingRequest) -> Written:
        import torch

        if self._loaded is None:
            self._loaded = load_model(self._options)
        model, tokenizer = self._loaded
        inputs = tokenizer(self._rendered(tokenizer, request), return_tensors="pt", add_special_tokens=False).to(model.device)
        begun = int(inputs["input_ids"].shape[1])
        torch.manual_seed(request.seed * 1_000_003 % 2**31 + request.number)
        started = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=self._writing.tokens_per_review * request.n + 32 + self._options.room_for_thoughts,
                do_sample=True,
                temperature=self._writing.temperature,
                top_p=0.95,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        new = output[0, begun:]
        content, is_cut = decoded(model, tokenizer, new)
        texts = tuple(parse_reviews(content, is_cut=is_cut)[: 2 * request.n])
        return Written(
            category=request.category,
            number=request.number,
            seed=request.seed,
            prompt=request.prompt,
            generator=self.version,
            examples=request.examples,
            texts=texts,
            raw=None if texts else content[:2000],
            tokens_in=begun,
            tokens_out=len(new),
            seconds=time.perf_counter() - started,
        )

    def _rendered(self, tokenizer: Any, request: WritingRequest) -> str:
        if not tokenizer.chat_template:
            return f"{request.system}\n\n{request.user}"
        # Templates of models that do not think leave it unread.
        thinking = {"enable_thinking": self._options.thinking == "on"}
        messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **thinking))
        except Exception:  # templates raise what they like when they know no system message
            joined = [{"role": "user", "content": f"{request.system}\n\n{request.user}"}]
            return str(tokenizer.apply_chat_template(joined, tokenize=False, add_generation_prompt=True, **thinking))
