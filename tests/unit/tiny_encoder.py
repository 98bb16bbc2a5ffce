"""A real but tiny encoder with its tokenizer, made on the spot, so that no test of exported encoders needs a download."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from reviewclf.training.encoder_network import EncoderNetwork

CLASSES = ["одежда", "посуда", "мебель", "нет товара"]
SEEN = [0, 1, 3]  # nothing was ever labelled «мебель»

_CLOTHES = ["платье", "кофта", "юбка", "рубашка", "джинсы", "свитер", "ткань", "рукава"]
_DISHES = ["сковорода", "кастрюля", "чашка", "тарелка", "половник", "крышка", "ковш", "нож"]
_NOTHING = ["доставка", "продавец", "посылка", "деньги", "трек", "спор", "возврат", "ждал"]
_FILLERS = ["очень", "хорошая", "пришла", "быстро", "мне", "не", "понравилась", "спасибо", "и", "за", "всё"]
_LETTERS = sorted(set("".join([*_CLOTHES, *_DISHES, *_NOTHING, *_FILLERS]) + "0123456789.,!:ёЁqueryПКС"))


def toy_reviews(count: int = 120) -> tuple[list[str], list[str]]:
    """Reviews of 1 to 20 words and their labels, the same at each call."""
    generator = torch.Generator().manual_seed(0)

    def pick(words: list[str], number: int) -> list[str]:
        return [words[position] for position in torch.randint(len(words), (number,), generator=generator)]

    texts, labels = [], []
    for position in range(count):
        label, words = [("одежда", _CLOTHES), ("посуда", _DISHES), ("нет товара", _NOTHING)][position % 3]
        length = int(torch.randint(1, 10, (1,), generator=generator))
        texts.append(" ".join(pick(words, length) + pick(_FILLERS, position % 11)))
        labels.append(label)
    return texts, labels


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece of the toy words and of single letters."""
    words = [*_CLOTHES, *_DISHES, *_NOTHING, *_FILLERS]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *_LETTERS, *("##" + letter for letter in _LETTERS)]
    vocabulary = {piece: position for position, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def tiny_body(**changes: Any) -> BertModel:
    """BERT of two layers with random weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertModel(
        BertConfig(
            vocab_size=len(tiny_tokenizer()),
            max_position_embeddings=64,
            pad_token_id=0,
            initializer_range=0.2,
            **{**shape, **changes},
        )
    ).eval()


@cache
def tiny_network(pooling: str = "mean") -> EncoderNetwork:
    """Trained on the toy reviews until its labels are clear; do not change it."""
    network = EncoderNetwork(tiny_body(), classes=len(CLASSES), pooling=pooling, dropout=0.0)  # type: ignore[arg-type]
    texts, labels = toy_reviews()
    encoded = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    target = torch.tensor([CLASSES.index(label) for label in labels])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(network(encoded["input_ids"], encoded["attention_mask"]), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


def torch_logits(network: EncoderNetwork, texts: list[str], max_length: int = 64) -> Any:
    """Each text alone, tokenised by Transformers: what every exported file has to answer."""
    rows = []
    with torch.inference_mode():
        for text in texts:
            encoded = tiny_tokenizer()(text, truncation=True, max_length=max_length, return_tensors="pt")
            rows.append(network(encoded["input_ids"], encoded["attention_mask"])[0])
    return torch.stack(rows).double().numpy()


def save_checkpoint(folder: Path, **changes: Any) -> Path:
    """Folder as a model hub has it."""
    tiny_body(**changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
