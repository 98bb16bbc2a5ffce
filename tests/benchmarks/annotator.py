"""Labelling by one forward pass against the notebook's loop, with the same model of Qwen2's architecture."""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

from reviewclf.labeling.annotators.base import Review
from reviewclf.labeling.annotators.transformers import TransformersAnnotator
from reviewclf.settings import LLMSettings, load_settings
from reviewclf.taxonomy import Taxonomy
from tests.benchmarks import Measurement, load_reviews
from tests.tiny_llm import make_model, make_tokenizer

_ROWS = 200
_LAYERS, _WIDTH, _HEADS = 6, 192, 6
_ANSWER_TOKENS = 64

# The notebook's prompt, shortened where it lists examples; categories by name.
_NOTEBOOK_PROMPT = (
    "Ты — классификатор отзывов. Определи категорию товара в отзыве. Возможные категории: {names}. "
    'Ответь строго в формате JSON: {{"category": "...", "confidence": 0.0}}.\nОтзыв: {text}'
)


def notebook_loop(model: Any, tokenizer: Any, texts: list[str], names: list[str]) -> list[str]:
    """Ask review by review as the notebook did: the baseline.

    The notebook that the project grew from (public repository Sokol499/llm_review_classif) renders the chat template for each
    review, samples up to 64 new tokens, decodes them and reads JSON; what cannot be read becomes «нет товара».
    """
    import torch

    labels = []
    for text in texts:
        messages = [{"role": "user", "content": _NOTEBOOK_PROMPT.format(names=", ".join(names), text=text)}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=_ANSWER_TOKENS,
                do_sample=True,
                temperature=0.7,
                top_p=0.9,
                pad_token_id=tokenizer.pad_token_id,
            )
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        try:
            labels.append(str(json.loads(answer)["category"]))
        except (ValueError, KeyError, TypeError):
            labels.append("нет товара")
    return labels


def measure() -> list[Measurement]:
    """Reviews per second: 200 for each way in one run, and ours again with four times as many."""
    import torch

    texts, source = load_reviews()
    tokenizer = make_tokenizer(texts, vocabulary=8000)
    model = make_model(tokenizer, layers=_LAYERS, width=_WIDTH, heads=_HEADS)
    # Random weights have no reason to stop; Qwen2 mostly stops before 64 tokens, which would favour the baseline.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    taxonomy = Taxonomy.load(load_settings(_env_file=None).taxonomy)
    # At this size a second thread costs more than it brings, above all in the baseline's many small steps.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = perf_counter()
    notebook_loop(model, tokenizer, texts[:_ROWS], taxonomy.names)
    baseline = perf_counter() - started

    def seconds(n: int, prompt: str) -> float:
        annotator = TransformersAnnotator(LLMSettings(backend="transformers", votes=3), taxonomy).use(model, tokenizer)
        annotator.questions = [question for question in annotator.questions if question.name.startswith(f"{prompt}@")]
        many = (texts * (n // len(texts) + 1))[:n]
        begun = perf_counter()
        votes = list(annotator.annotate([Review(text_hash=str(i), text=text) for i, text in enumerate(many)]))
        assert len(votes) == n
        return perf_counter() - begun

    seconds(8, "category-short")
    ours, four_times = seconds(_ROWS, "category-short"), seconds(4 * _ROWS, "category-short")
    longest = seconds(_ROWS, "category-guide")
    torch.set_num_threads(threads)
    model_size = f"Qwen2 architecture, {_LAYERS} layers, {_WIDTH} wide, random weights, one thread; {source}"
    return [
        Measurement(
            name="one vote by forward pass",
            rows=_ROWS,
            baseline=_ROWS / baseline,
            ours=_ROWS / ours,
            note=f"{model_size}; category-short against the notebook's loop (64 sampled tokens of JSON)",
            target=20.0,
        ),
        Measurement(
            name="the same with the longest prompt",
            rows=_ROWS,
            baseline=_ROWS / baseline,
            ours=_ROWS / longest,
            note="category-guide: rules and descriptions, about ten times the notebook's prompt",
        ),
        Measurement(
            name="the same, four times the reviews",
            rows=4 * _ROWS,
            baseline=_ROWS / ours,
            ours=4 * _ROWS / four_times,
            note="against our own 200: the time per review must not grow",
            target=0.8,
        ),
    ]
