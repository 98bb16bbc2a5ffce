"""A language model of Transformers in this process."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Sequence
from typing import Any, Self

from reviewclf.errors import LabelingError
from reviewclf.llm.replies import Reply
from reviewclf.settings import LLMSettings

logger = logging.getLogger(__name__)


class LocalModel:
    """Model and tokenizer that the settings name, loaded when they are first needed.

    Parameters
    ----------
    options : LLMSettings
        ``model``, ``revision``, ``device``, ``dtype``, ``quantization``, ``thinking``, ``thinking_tokens``.
    """

    def __init__(self, options: LLMSettings) -> None:
        self._options = options
        self._loaded: tuple[Any, Any] | None = None

    def use(self, model: Any, tokenizer: Any) -> Self:
        """Take a model and tokenizer that are loaded already."""
        self._loaded = (model.eval(), tokenizer)
        return self

    def load(self) -> tuple[Any, Any]:
        """Model and tokenizer.

        Raises
        ------
        LabelingError
            They cannot be loaded; the message says how to get them.
        """
        if self._loaded is None:
            self.use(*_load(self._options))
        assert self._loaded is not None  # noqa: S101 - said to mypy
        return self._loaded

    def render(self, system: str, user: str, *, thinking: bool) -> str:
        """The messages as the model's chat template writes them."""
        _, tokenizer = self.load()
        joined = f"{system}\n\n{user}"
        if not tokenizer.chat_template:
            return joined
        # Templates of models that do not think leave it unread.
        arguments: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": thinking}
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        try:
            return str(tokenizer.apply_chat_template(messages, **arguments))
        except Exception:  # templates raise what they like when they know no system message
            return str(tokenizer.apply_chat_template([{"role": "user", "content": joined}], **arguments))

    def write(self, tokens: Sequence[int], *, room: int, temperature: float, top_p: float, seed: int) -> Reply:
        """Sample an answer to a rendered question; the same tokens, seed, model and machine give the same one.

        Special tokens are left in the text: some models mark their thoughts by them.

        Parameters
        ----------
        tokens : sequence of int
            The question.
        room : int
            Longest answer, in tokens; thoughts get theirs beside it.
        """
        import torch

        model, tokenizer = self.load()
        torch.manual_seed(seed)
        started = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor([tokens], device=model.device),
                attention_mask=torch.ones((1, len(tokens)), dtype=torch.long, device=model.device),
                max_new_tokens=room + self._options.room_for_thoughts,
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        seconds = time.perf_counter() - started
        written = output[0, len(tokens) :].tolist()
        ends = model.generation_config.eos_token_id
        stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
        length = next((place for place, token in enumerate(written) if token in stops), None)
        text = str(tokenizer.decode(written[:length], skip_special_tokens=False))
        return Reply(text, is_cut=length is None, tokens_in=len(tokens), tokens_out=len(written), seconds=seconds)


def _load(options: LLMSettings) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gpu = torch.cuda.is_available() if options.device == "auto" else options.device.startswith("cuda")
    usual = "bfloat16" if gpu else "float32"
    dtype = getattr(torch, usual if options.dtype == "auto" else options.dtype)
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
    return model, tokenizer


def _four_bit(dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise LabelingError(
            "REVIEWCLF_LLM__QUANTIZATION=4bit needs the package bitsandbytes: pip install bitsandbytes, or set it to none"
        )
    config: Any = BitsAndBytesConfig
    return config(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")
