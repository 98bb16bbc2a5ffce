"""Building a training set of up to a million rows: processor seconds and memory, each size in a process of its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from tests.benchmarks import ROOT, Measurement, load_reviews

SIZES = (100_000, 300_000, 1_000_000)
_GIB = 2**30
_LETTERS = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя "


def perturbed(texts: list[str], n: int, *, seed: int = 1) -> list[str]:
    """`n` texts made of reviews: each in turn with half of its words replaced, or a copy of a late one with typos.

    Words come from all reviews, as often as they occur there, so that two texts of one review are about as alike as two reviews
    are. A third copy one of the last thousand texts with a typo every 30 letters, a fifth of these in capitals: near-duplicates
    come in groups whose size does not grow with `n`, as reviews from templates do.
    """
    generator = random.Random(seed)
    words = [word for text in texts for word in text.split()]
    made = list(texts[:n])
    while len(made) < n:
        text = generator.choice(made[-1000:])
        if len(text) >= 60 and generator.random() < 1 / 3:
            letters = list(text)
            for _ in range(len(letters) // 30):
                letters[generator.randrange(len(letters))] = generator.choice(_LETTERS)
            text = "".join(letters)
            made.append(text.upper() if generator.random() < 0.2 else text)
        else:
            text = texts[len(made) % len(texts)]
            made.append(" ".join(word if generator.random() < 0.5 else generator.choice(words) for word in text.split()))
    return made


def build(n: int) -> dict[str, float]:
    """Build a training set of `n` labelled rows in this process.

    Returns
    -------
    dict
        Processor seconds, which other work on the machine does not change; peak memory in bytes; rows by split.
    """
    import resource
    import time

    import pandas as pd

    from reviewclf.data.dataset import build_dataset
    from reviewclf.data.gold import check_gold
    from reviewclf.settings import DatasetSettings, load_settings
    from reviewclf.taxonomy import Taxonomy
    from reviewclf.text import clean_texts, text_hash

    reviews, _ = load_reviews()
    texts = clean_texts([text for text in reviews if text.strip()])
    taxonomy = Taxonomy.load(load_settings(_env_file=None).taxonomy)

    def label(text: str) -> str:
        counts = taxonomy.matcher.counts(text)
        return max(counts, key=lambda name: counts[name]) if counts else taxonomy.names[-1]

    judged = pd.DataFrame({"text": texts[:300], "label": [label(text) for text in texts[:300]]})
    gold, _ = check_gold(judged, taxonomy.names)
    made = perturbed([text for text in texts[300:] if text], n)
    frame = pd.DataFrame({"text_clean": made})
    frame["text_hash"] = [text_hash(text) for text in made]
    frame["label"] = [label(text) for text in made]
    del made
    frame["review_id"] = [f"r{number}" for number in range(n)]
    frame = frame.assign(confidence=0.9, origin="llm", method="posterior", hint=False)
    # What a worker holds before it begins: the interpreter, the libraries and the rows themselves.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.process_time()
    dataset, left_out = build_dataset(frame, gold, DatasetSettings(), min_confidence=0.5, seed=42, stems=taxonomy.keyword_stems)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    counts = dataset["split"].value_counts()
    return {
        "seconds": seconds,
        "before": before,
        "peak": peak,
        "left_out": len(left_out),
        "groups": dataset["group"].nunique(),
        **{str(k): int(v) for k, v in counts.items()},
    }


def measure(sizes: tuple[int, ...] = SIZES) -> list[Measurement]:
    """Rows per second by size, with peak memory; the last has to keep 0.7 of the first one's pace."""
    first: float | None = None
    measurements = []
    _, source = load_reviews()
    for n in sizes:
        answer = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.dataset", str(n)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found = json.loads(answer.stdout.splitlines()[-1])
        pace = n / found["seconds"]
        over = "" if found["peak"] < 4 * _GIB else ", OVER 4 GiB"
        measurements.append(
            Measurement(
                name="build_dataset",
                rows=n,
                baseline=first,
                ours=pace,
                note=f"{source}, perturbed; peak {found['peak'] / _GIB:.2f} GiB{over}; baseline: the pace at {sizes[0]:,} rows",
                target=None if first is None else 0.7,
            )
        )
        first = first or pace
    return measurements


if __name__ == "__main__":
    assert Path.cwd() == ROOT, "run it from the checkout"
    print(json.dumps(build(int(sys.argv[1]))))
