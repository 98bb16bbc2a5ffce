"""An encoder of rubert-base's size and a language model of Qwen2-7B's on a GPU: ``python -m tests.benchmarks.gpu``.

All weights are random, which changes no speed. It takes seven minutes and a GPU with 24 GB of memory, so it is no part of
``make bench``. With ``--smoke`` everything is tiny and runs on the CPU, to see that the script still works.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from reviewclf.text import clean_text, clean_texts
from tests.benchmarks import REAL_REVIEWS, Measurement, load_reviews
from tests.benchmarks.__main__ import as_table
from tests.benchmarks.encoder_prediction import ARCHITECTURE

_CLASSES = [str(number) for number in range(9)]
_MAX_LENGTH = 128
_PREDICTION_TOKENS = 16_384
# All votes are taken on fewer reviews where the larger number would take longer.
_MAX_SECONDS = 300


@dataclass(frozen=True)
class Sizes:
    """How large everything is; the batches are those of training as (reviews, batches that make one step)."""

    encoder: Mapping[str, int]
    language_model: Mapping[str, int]
    batches: Mapping[tuple[int, int], int]
    predicted: int
    labelled: int
    labelled_longer: int
    batch_tokens: Sequence[int]
    matrix: int


FULL = Sizes(
    encoder={"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    language_model={
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
    },
    batches={(8, 2): 2048, (64, 1): 12_288, (256, 1): 12_288},
    predicted=12_288,
    labelled=2000,
    labelled_longer=20_000,
    batch_tokens=(1024, 2048, 4096),
    matrix=8192,
)
SMOKE = Sizes(
    encoder={"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    language_model={
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2000,
    },
    batches={(4, 2): 16},
    predicted=30,
    labelled=10,
    labelled_longer=20,
    batch_tokens=(256,),
    matrix=64,
)


class Card:
    """The device, and how fast it multiplies large matrices: operations per second by type, what shares refer to."""

    def __init__(self, side: int) -> None:
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.rates = {name: 2 * side**3 / self._seconds(side, getattr(torch, name)) for name in ("bfloat16", "float32")}

    def _seconds(self, side: int, dtype: Any) -> float:
        import torch

        first, second = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        for _ in range(3):
            first @ second
        self.wait()
        started = perf_counter()
        for _ in range(10):
            first @ second
        self.wait()
        return (perf_counter() - started) / 10

    def wait(self) -> None:
        """Until the device has done what it was given."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def used(self, operations_per_second: float, dtype: str) -> str:
        """Share of the matrix rate, and the most memory taken since this was last asked."""
        import torch

        share = f"{operations_per_second / self.rates[dtype]:.1%} of {dtype}'s matrix rate"
        if self.device.type != "cuda":
            return share
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return f"{share}, {peak:.1f} GiB"


def load_texts(n: int) -> list[str]:
    """`n` reviews: of both shops where the real ones lie beside the checkout; repeated where there are fewer."""
    texts, _ = load_reviews()
    others = REAL_REVIEWS.parent / "multi" / "reviews.csv"
    if others.exists():
        with others.open(encoding="utf-8", newline="") as file:
            texts = texts + [row["text"] for row in csv.DictReader(file)]
    texts = [text for text in texts if clean_text(text)]
    # Mixed, since the shops' reviews differ in length.
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[order[row % len(texts)]] for row in range(n)]


def encoder_operations(config: Any, lengths: Sequence[int]) -> float:
    """Multiplications and additions of one pass over texts of so many tokens, padding not counted."""
    width, tokens = config.hidden_size, np.asarray(lengths, dtype=float)
    linear = 2 * (4 * width**2 + 2 * width * config.intermediate_size)
    return float(config.num_hidden_layers * (linear * tokens + 4 * width * tokens**2).sum())


def labelling_operations(config: Any, lengths: Sequence[int], prefix: int) -> float:
    """The same for a language model that reads each text after a prefix that it has read before, and answers one token."""
    width, tokens = config.hidden_size, np.asarray(lengths, dtype=float)
    keys_and_values = width * config.num_key_value_heads // config.num_attention_heads
    linear = 2 * (2 * width**2 + 2 * width * keys_and_values + 3 * width * config.intermediate_size)
    attention = 4 * width * tokens * (prefix + (tokens + 1) / 2)
    layers = config.num_hidden_layers * (linear * tokens + attention).sum()
    return float(layers + 2 * width * config.vocab_size * len(tokens))


def training(sizes: Sizes, card: Card, folder: Path) -> Iterator[Measurement]:
    """Reviews per second of the second epoch of :func:`fine_tune`, in 16 bits against 32; the first one warms up."""
    from transformers import AutoConfig, AutoTokenizer

    from reviewclf.training.encoder_params import EncoderParams
    from reviewclf.training.finetuning import fine_tune
    from reviewclf.training.rows import TrainingJob

    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for (batch, accumulated), n in sizes.batches.items():
        texts = clean_texts(load_texts(n))
        lengths = [len(ids) for ids in tokenizer(texts, truncation=True, max_length=_MAX_LENGTH)["input_ids"]]
        operations = 3 * encoder_operations(config, lengths)
        labels = [_CLASSES[row % len(_CLASSES)] for row in range(n)]
        rows = pd.DataFrame({"text_clean": texts, "label": labels, "weight": 1.0})
        job = TrainingJob(rows, rows.head(0), classes=_CLASSES, encoders=folder.parent)
        seconds, used = {}, {}
        for precision, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
            params = EncoderParams(
                checkpoint=folder.name, epochs=2, batch_size=batch, gradient_accumulation=accumulated, precision=precision
            )
            seconds[precision] = fine_tune("benchmark", params, job).history[-1]["seconds"]
            used[precision] = card.used(operations / seconds[precision], dtype)
        yield Measurement(
            name=f"fine-tuning, batches of {batch}, steps of {batch * accumulated}",
            rows=n,
            baseline=n / seconds["fp32"],
            ours=n / seconds["bf16"],
            note=f"bf16 against fp32; {np.mean(lengths):.1f} tokens a review; {used['bf16']}; {used['fp32']}",
        )


def prediction(sizes: Sizes, card: Card, folder: Path) -> Iterator[Measurement]:
    """Reviews per second of the network that is fine-tuned, in the length-sorted batches that are served."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from reviewclf.training.encoder_network import EncoderNetwork
    from reviewclf.training.onnx_session import TextReader

    network = EncoderNetwork(AutoModel.from_pretrained(folder), classes=len(_CLASSES), pooling="mean").eval().to(card.device)
    reader = TextReader.of(AutoTokenizer.from_pretrained(folder), max_length=_MAX_LENGTH)
    texts = clean_texts(load_texts(sizes.predicted))
    batches = [inputs for _, inputs in reader.batches(texts, tokens=_PREDICTION_TOKENS)]
    lengths = np.concatenate([inputs["attention_mask"].sum(axis=1) for inputs in batches])
    operations = encoder_operations(network.encoder.config, lengths)

    def run(inputs: Mapping[str, Any]) -> Any:
        with torch.inference_mode():
            answers = network(**{name: torch.from_numpy(array).to(card.device) for name, array in inputs.items()})
        return answers.float().cpu().numpy()

    ways: dict[str, Callable[[], object]] = {
        "tokenising included": lambda: reader.answers(run, texts, tokens=_PREDICTION_TOKENS),
        "tokenised before": lambda: [run(inputs) for inputs in batches],
    }
    seconds, used = {}, {}
    for dtype in ("float32", "bfloat16"):
        network.to(getattr(torch, dtype))
        for name, way in ways.items():
            seconds[name, dtype] = median([_seconds(way) for _ in range(4)][1:])
            used[name, dtype] = card.used(operations / seconds[name, dtype], dtype)
    for name in ways:
        baseline, ours = (seconds[name, dtype] for dtype in ("float32", "bfloat16"))
        yield Measurement(
            name=f"prediction by torch, {name}",
            rows=len(texts),
            baseline=len(texts) / baseline,
            ours=len(texts) / ours,
            note=f"bf16 against fp32; {_PREDICTION_TOKENS:,} tokens a batch; {lengths.mean():.1f} tokens a review; "
            f"{used[name, 'bfloat16']}; {used[name, 'float32']}",
        )


def labelling(sizes: Sizes, card: Card) -> Iterator[Measurement]:
    """Reviews per second of the annotator: one vote by the longest prompt in batches of several sizes, then all votes."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from reviewclf.labeling.annotators.base import Review
    from reviewclf.labeling.annotators.transformers import TransformersAnnotator
    from reviewclf.settings import LLMSettings, load_settings
    from reviewclf.taxonomy import Taxonomy
    from tests.tiny_llm import make_tokenizer

    # 2,000 pieces write about as many tokens a word of Russian as a tokenizer for all languages.
    tokenizer = make_tokenizer(load_reviews()[0], vocabulary=2000)
    dtype = torch.bfloat16
    started = perf_counter()
    with card.device:
        model: Any = AutoModelForCausalLM.from_config(Qwen2Config(**sizes.language_model), dtype=dtype)
    card.wait()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{parameters / 1e9:.2f} billion weights made in {perf_counter() - started:.0f} s")
    taxonomy = Taxonomy.load(load_settings(_env_file=None).taxonomy)

    def measure(n: int, batch_tokens: int, votes: int, *, warm: bool = False) -> Measurement:
        options = LLMSettings(backend="transformers", votes=3, dtype="bfloat16", batch_tokens=batch_tokens)
        annotator = TransformersAnnotator(options, taxonomy).use(model, tokenizer)
        # The longest prompt is the first.
        annotator.questions = annotator.questions[:votes]
        reviews = [Review(text_hash=str(row), text=text) for row, text in enumerate(load_texts(n))]
        if not warm:
            measure(min(n, 300), batch_tokens, votes, warm=True)
        begun = perf_counter()
        found = list(annotator.annotate(reviews))
        seconds = perf_counter() - begun
        assert len(found) == n * votes
        operations, tokens, prefixes = 0.0, 0, []
        for question in annotator.questions:
            prefix = len(annotator._frame(question).prefix)
            lengths = [vote.tokens_in - prefix for vote in found if vote.prompt == question.name]
            operations += labelling_operations(model.config, lengths, prefix)
            tokens += sum(lengths)
            prefixes.append(prefix)
        return Measurement(
            name=f"labelling, {votes} vote{'s' * (votes > 1)}, batches of {batch_tokens} tokens",
            rows=n,
            baseline=None,
            ours=n / seconds,
            note=f"{tokens / n / votes:.1f} tokens a review and vote, the end of the prompt included, after "
            f"{' and '.join(map(str, prefixes))} in common; {tokens / seconds:,.0f} tokens a second; {seconds:.1f} s; "
            f"{card.used(operations / seconds, 'bfloat16')}",
        )

    single = {}
    for batch_tokens in sizes.batch_tokens:
        single[batch_tokens] = measure(sizes.labelled, batch_tokens, 1)
        yield single[batch_tokens]
    fastest = max(single, key=lambda batch_tokens: single[batch_tokens].ours)
    fits = 3 * sizes.labelled_longer / single[fastest].ours <= _MAX_SECONDS
    yield measure(sizes.labelled_longer if fits else sizes.labelled, fastest, 3)


def _seconds(function: Callable[[], object]) -> float:
    started = perf_counter()
    function()
    return perf_counter() - started


def save_encoder(sizes: Sizes, folder: Path) -> None:
    """Write an encoder with random weights, with rubert-tiny2's tokenizer where it lies beside the checkout."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from tests.tiny_llm import make_tokenizer

    if ARCHITECTURE.exists():
        tokenizer = AutoTokenizer.from_pretrained(ARCHITECTURE)
    else:
        tokenizer = make_tokenizer(load_reviews()[0], vocabulary=8000)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=119_547, max_position_embeddings=512, **sizes.encoder)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, which run on a CPU")
    sizes = SMOKE if parser.parse_args().smoke else FULL
    import torch
    import transformers

    card = Card(sizes.matrix)
    rates = ", ".join(f"{name} {rate / 1e12:,.1f}" for name, rate in card.rates.items())
    title = (
        f"{card.name}: reviews per second (product of {sizes.matrix}-wide matrices in TFLOP/s: {rates}; torch "
        f"{torch.__version__}, transformers {transformers.__version__})"
    )
    say(title)
    measurements = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "encoder"
        save_encoder(sizes, folder)
        for part in (training(sizes, card, folder), prediction(sizes, card, folder), labelling(sizes, card)):
            for measurement in part:
                # A run that is cut short has said what it knew.
                say(f"{measurement.name}: {measurement.ours:,.0f} ({measurement.baseline or 0:,.0f}); {measurement.note}")
                measurements.append(measurement)
    table = as_table(measurements)
    table.title = title
    Console().print(table)


if __name__ == "__main__":
    main()
