"""What a night of 5,000 new reviews costs after few and after many others, by stage, each in a process of its own.

Before it lies a first night with all of the others, which is measured too. Both run the stages themselves: sources, checks,
cleaning, labels by keyword stems, and scores of a linear champion. ``python -m tests.benchmarks.nights 1000000`` prints both
nights for that many reviews; ``make bench`` compares 10,000 with 100,000.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import ROOT, Measurement, load_reviews
from tests.benchmarks.dataset import perturbed

SIZES = (10_000, 100_000)
NEW = 5_000
_GIB = 2**30
# Sharded ones stand for all their shards, one after another.
STAGES = (
    "ingest",
    "validate_raw",
    "clean",
    "validate_clean",
    "publish",
    "select",
    "annotate",
    "collect",
    "aggregate",
    "select_unscored",
    "score",
    "publish_predictions",
    "monitor",
    "maintain",
)


def settings_of(folder: Path) -> Any:
    """Settings of a store in `folder`, to which a file of reviews is brought each night."""
    from reviewclf.settings import load_settings

    return load_settings(
        _env_file=None, home=folder, source=str(folder / "source"), votes=None, gold=None, quality={"max_volume_ratio": 10_000}
    )


def run_stage(folder: Path, stage: str) -> None:
    """Run one stage on what the stages before it have handed on."""
    from reviewclf.manifest import Manifest
    from reviewclf.stages import ingest, label, maintain, monitor, review, score

    settings = settings_of(folder)

    def handed_on(name: str) -> list[Manifest]:
        return [Manifest.model_validate(one) for one in json.loads((folder / f"{name}.json").read_text())]

    def one(name: str) -> Manifest:
        return handed_on(name)[0]

    def shards(name: str) -> Iterator[Any]:
        yield from one(name).details["shards"]  # type: ignore[misc]

    works = {
        "ingest": lambda: [ingest.ingest(settings)],
        "validate_raw": lambda: [ingest.validate_raw(settings, one("ingest"))],
        "clean": lambda: [ingest.clean(settings, one("ingest"), one("validate_raw"))],
        "validate_clean": lambda: [ingest.validate_clean(settings, one("clean"))],
        "publish": lambda: [ingest.publish(settings, *map(one, ("ingest", "validate_raw", "clean", "validate_clean")))],
        "select": lambda: [label.select(settings)],
        "annotate": lambda: [label.annotate(settings, one("select"), shard) for shard in shards("select")],
        "collect": lambda: [review.collect(settings, one("select"), handed_on("annotate"))],
        "aggregate": lambda: [label.aggregate(settings, one("select"), handed_on("annotate"))],
        "select_unscored": lambda: [score.select(settings)],
        "score": lambda: [score.score(settings, one("select_unscored"), shard) for shard in shards("select_unscored")],
        "publish_predictions": lambda: [score.publish(settings, one("select_unscored"), handed_on("score"))],
        "monitor": lambda: [monitor.monitor(settings, one("publish_predictions"))],
        "maintain": lambda: [maintain.maintain(settings)],
    }
    came = [manifest.model_dump(mode="json") for manifest in works[stage]()]
    (folder / f"{stage}.json").write_text(json.dumps(came))


def make_champion(folder: Path) -> None:
    """Train a linear model on the bundled sample's gold reviews and let the alias point at it."""
    import pandas as pd

    from reviewclf.taxonomy import Taxonomy
    from reviewclf.training.candidates import load_candidates
    from reviewclf.training.rows import TrainingJob
    from tests.benchmarks.champion import register_classifier

    settings = settings_of(folder)
    taxonomy = Taxonomy.load(settings.taxonomy)
    rows = pd.read_csv(ROOT / "reviewclf" / "sample" / "gold.csv").rename(columns={"text": "text_clean"}).assign(weight=1.0)
    job = TrainingJob(rows, rows.iloc[:0], classes=taxonomy.names, stems=taxonomy.keyword_stems)
    candidate = next(candidate for candidate in load_candidates(settings.candidates) if candidate.name == "logreg")
    candidate.train(job).save(folder / "classifier")
    register_classifier(settings.tracking_uri, folder / "classifier", kind=candidate.kind, example=rows["text_clean"][0])


def night(folder: Path, texts: list[str], start: int) -> dict[str, dict[str, float]]:
    """Bring the texts, numbered from `start`, and run the stages.

    Returns
    -------
    dict
        By stage, ``seconds`` of the processor and ``peak`` memory in bytes, with what the interpreter and libraries take.
    """
    import pandas as pd

    numbers = range(start, start + len(texts))
    times = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(list(numbers), unit="min")
    rows = pd.DataFrame({"review_id": [f"r{number}" for number in numbers], "text": texts, "created_at": times})
    source = folder / "source"
    source.mkdir(parents=True, exist_ok=True)
    rows.to_csv(source / f"from-{start:08d}.csv", index=False)
    figures = {}
    for stage in STAGES:
        command = [sys.executable, "-m", "tests.benchmarks.nights", "stage", str(folder), stage]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise RuntimeError(f"{stage}: {answer.stderr[-3000:]}")
        figures[stage] = json.loads(answer.stdout.splitlines()[-1])
    return figures


def two_nights(n: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Figures of a first night with `n` reviews and of one with 5,000 more, by stage."""
    reviews, _ = load_reviews()
    texts = perturbed([text for text in reviews if text.strip()], n + NEW)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_champion(folder)
        return night(folder, texts[:n], 0), night(folder, texts[n:], n)


def measure(sizes: tuple[int, ...] = SIZES) -> list[Measurement]:
    """New rows a second by stage after few others and after many; the last has to keep two thirds of the first one's pace."""
    _, source = load_reviews()
    found = {n: two_nights(n)[1] for n in sizes}
    measurements = []
    for stage in (*STAGES, "whole night"):
        paces = []
        for n in sizes:
            of_stage = list(found[n].values()) if stage == "whole night" else [found[n][stage]]
            peak = max(one["peak"] for one in of_stage)
            paces.append(NEW / sum(one["seconds"] for one in of_stage))
            over = "" if peak < 1.5 * _GIB else ", OVER 1.5 GiB"
            note = f"{source}, perturbed; after {n:,} others; peak {peak / _GIB:.2f} GiB{over}"
            first = None if n == sizes[0] else paces[0]
            target = None if first is None else 1 / 1.5
            measurements.append(Measurement(f"night, {stage}", NEW, first, paces[-1], note, target))
    return measurements


def table(n: int) -> str:
    """Both nights, in lines of text: seconds of the processor and gibibytes at the peak."""
    first, second = two_nights(n)
    lines = [f"{'':22}{f'first night, {n:,}':>26}{f'{NEW:,} more':>26}"]
    for stage in STAGES:
        cells = (f"{of[stage]['seconds']:10.1f} s {of[stage]['peak'] / _GIB:10.2f} GiB" for of in (first, second))
        lines.append(f"{stage:22}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "stage":
        import resource

        run_stage(Path(sys.argv[2]), sys.argv[3])
        used = resource.getrusage(resource.RUSAGE_SELF)
        # What resource tells of memory begins with that of the process which started this one.
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
        print(json.dumps({"seconds": used.ru_utime + used.ru_stime, "peak": peak}))
    else:
        print(table(int(sys.argv[1])))
