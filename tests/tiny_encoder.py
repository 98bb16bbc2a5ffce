"""A pretrained encoder for tests, made on the spot: two layers of random weights and a tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


def save_tiny_encoder(folder: Path, texts: Iterable[str], *, extra_words: int = 50, seed: int = 0, **config: Any) -> Path:
    """Write ``config.json``, ``model.safetensors`` and ``tokenizer.json`` of a BERT that knows the words of `texts`."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in text.casefold().split()})
    names = [PAD, UNKNOWN, START, END, *words, *(f"слово{number}" for number in range(extra_words))]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(START, vocabulary[START]), (END, vocabulary[END])]
    backend.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, unk_token=UNKNOWN, cls_token=START, sep_token=END, model_max_length=64
    )
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    body = BertModel(BertConfig(vocab_size=len(names), max_position_embeddings=64, pad_token_id=0, **{**shape, **config}))
    torch.random.set_rng_state(state)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    body.save_pretrained(folder)
    return folder
