"""Simulated nights of real reviews, undisturbed or with a planted shift, for tests of the watch over production.

Where the real reviews of one marketplace are at hand (see `REAL`), the champion is trained on one half of them and nights are
drawn from the other: groups of near-duplicates are in one half as a whole, so a night shows the champion no text that it, or
the extractor that learned from the same half, knows already. Drawn within a night without repetition (ingestion lets exact
copies out), across nights with it: there are far fewer reviews than nights need. Repetition across nights could fake calm, as
tonight may hold reviews of the nights it is compared with; `Shop.partition` therefore also gives nights that share nothing.
Elsewhere the bundled sample stands in, with smaller nights.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from reviewclf.data.duplicates import near_duplicate_groups
from reviewclf.monitoring.drift import Night
from reviewclf.monitoring.features import FeatureExtractor, Features, phrases_of, words_of
from reviewclf.settings import load_settings
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import clean_texts, text_hash
from reviewclf.training.candidates import load_candidates
from reviewclf.training.rows import TrainingJob

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data"
ALPHABET = "абвгдежзийклмнопрстуфхцчшщыьэюя"


@dataclass(frozen=True)
class Pool:
    """Reviews that nights are drawn from, each read once."""

    texts: list[str]
    features: Features
    phrases: list[set[str]]
    labels: list[str]
    votes: np.ndarray
    confidence: np.ndarray
    abstained: np.ndarray
    probabilities: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


class Shop:
    """A marketplace with a trained champion and reviews that it has not seen.

    Parameters
    ----------
    seed : int
        Of which reviews are training data.
    left_out : sequence of str
        Categories that nobody has sold so far; their reviews are in `newcomers` alone.
    """

    def __init__(self, seed: int, left_out: Sequence[str] = ("электроника", "посуда")) -> None:
        settings = load_settings(_env_file=None)
        taxonomy = Taxonomy.load(settings.taxonomy)
        self.classes = taxonomy.names
        self.is_real = (REAL / "reviews.csv").exists()
        self.night_rows = 500 if self.is_real else 120
        sample = _labelled(ROOT / "reviewclf" / "sample" / "reviews.csv", ROOT / "reviewclf" / "sample" / "votes.csv", "a@")
        self.newcomers = sample.loc[sample["label"].isin(left_out), "text_clean"].tolist()
        if self.is_real:
            reviews = _labelled(REAL / "reviews.csv", REAL / "votes.csv", "reader-2")
        else:
            gold = pd.read_csv(ROOT / "reviewclf" / "sample" / "gold.csv").assign(text_clean=lambda f: clean_texts(f["text"]))
            reviews = pd.concat([sample, gold], ignore_index=True)
            reviews = reviews[~reviews["label"].isin(left_out)].reset_index(drop=True)
        reviews = reviews.loc[~reviews["text_clean"].map(text_hash).duplicated()].reset_index(drop=True)
        trained = _half(reviews, seed)
        training, rest = reviews[trained].reset_index(drop=True), reviews[~trained].reset_index(drop=True)
        voted = training[training["label"].notna()].sample(frac=1.0, random_state=seed).assign(weight=0.95)
        validation = voted.iloc[: len(voted) // 5].reset_index(drop=True)
        spec = next(item for item in load_candidates(settings.candidates) if item.name == "linear-svc")
        job = TrainingJob(
            voted.iloc[len(voted) // 5 :].reset_index(drop=True),
            validation,
            classes=self.classes,
            stems=taxonomy.keyword_stems,
            seed=seed,
        )
        self.champion = spec.train(job)
        self.extractor = FeatureExtractor(training["text_clean"].tolist())
        answered = self.pool(validation["text_clean"].tolist(), validation["label"].tolist())
        self.training = replace(self.night(answered), features=self.extractor.own, texts=training["text_clean"].tolist())
        self.validation = answered
        self.reviews = self.pool(rest["text_clean"].tolist(), rest["label"].tolist())

    def pool(self, texts: list[str], votes: Sequence[object] | None = None) -> Pool:
        """Read and answer texts."""
        probabilities = self.champion.predict_proba(texts)
        unsure = np.array([said == "не уверен" for said in self.champion.answers(probabilities, abstain=True)])
        return Pool(
            texts=texts,
            features=self.extractor.read(texts),
            phrases=[phrases_of(words_of(text)) for text in texts],
            labels=self.champion.answers(probabilities),
            votes=np.array(votes if votes is not None else [None] * len(texts), dtype=object),
            confidence=probabilities.max(axis=1),
            abstained=unsure,
            probabilities=probabilities,
        )

    def night(self, pool: Pool, rows: np.ndarray | None = None) -> Night:
        """The chosen rows of a pool as a night."""
        rows = np.arange(len(pool)) if rows is None else rows
        phrases: Counter[str] = Counter()
        for row in rows:
            phrases.update(pool.phrases[row])
        features = pool.features
        voted = np.array([isinstance(pool.votes[row], str) for row in rows], dtype=bool)
        same = np.array([pool.votes[row] == pool.labels[row] for row in rows], dtype=np.float64)
        return Night(
            features=Features(
                **{
                    name: getattr(features, name)[rows]
                    for name in ("length", "foreign", "words", "unknown", "long_words", "misspelt", "vectors")
                },
                phrases=phrases,
            ),
            texts=[pool.texts[row] for row in rows],
            version="1",
            labels=[pool.labels[row] for row in rows],
            confidence=pool.confidence[rows],
            abstained=pool.abstained[rows],
            agreed=np.where(voted, same, np.nan),
        )

    def nights(
        self, rng: np.random.Generator, count: int, *, rows: int | None = None, among: np.ndarray | None = None
    ) -> list[Night]:
        """Undisturbed nights, each drawn without repetition."""
        among = np.arange(len(self.reviews)) if among is None else among
        drawn = [rng.choice(among, min(rows or self.night_rows, len(among)), replace=False) for _ in range(count)]
        return [self.night(self.reviews, chosen) for chosen in drawn]

    def partition(self, rng: np.random.Generator, rows: int) -> list[Night]:
        """As many nights as there are reviews for, no review in two of them."""
        drawn = rng.permutation(len(self.reviews))
        return [self.night(self.reviews, drawn[start : start + rows]) for start in range(0, len(drawn) - rows + 1, rows)]

    def mixed(self, rng: np.random.Generator, texts: Sequence[str]) -> Night:
        """A night in which `texts` take the place of as many reviews."""
        drawn = rng.choice(len(self.reviews), self.night_rows - len(texts), replace=False)
        return self.night(self.pool([*(self.reviews.texts[row] for row in drawn), *texts]))


def with_typos(texts: Sequence[str], rng: np.random.Generator, *, per_word: float) -> list[str]:
    """Each word of four letters and more gets a typo with this probability: a letter lost, doubled, swapped or replaced."""

    def typed(word: str) -> str:
        if len(word) < 4 or rng.random() >= per_word:
            return word
        place = int(rng.integers(1, len(word) - 1))
        kind = rng.integers(4)
        if kind == 0:
            return word[:place] + word[place + 1 :]
        if kind == 1:
            return word[:place] + word[place] + word[place:]
        if kind == 2:
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        return word[:place] + ALPHABET[rng.integers(len(ALPHABET))] + word[place + 1 :]

    return [" ".join(typed(word) for word in text.split(" ")) for text in texts]


def template_reviews(rng: np.random.Generator, count: int) -> list[str]:
    """What a marketplace suggests to write, filled in: no two alike, so ingestion lets them in."""
    things = ["платье", "кофту", "блузку", "куртку", "футболку", "юбку", "брюки", "рубашку", "свитер", "пальто", "шорты"]
    ends = ["Рекомендую!", "Советую всем.", "Буду заказывать ещё.", "Доволен покупкой.", "Спасибо!", "Пять звёзд."]
    return [
        f"Купили {things[rng.integers(len(things))]}, размер {rng.integers(40, 60)}. Товар полностью соответствует описанию "
        f"на сайте, оценка {rng.integers(1, 100)} из 100. {ends[rng.integers(len(ends))]}"
        for _ in range(count)
    ]


@functools.cache
def shop(seed: int) -> Shop:
    """The shop of a seed, opened once per process."""
    return Shop(seed)


def _labelled(reviews: Path, votes: Path, annotator: str) -> pd.DataFrame:
    frame = pd.read_csv(reviews, dtype={"review_id": str}, on_bad_lines="skip")
    said = pd.read_csv(votes, dtype={"review_id": str})
    said = said[said["annotator"].str.contains(annotator, regex=False)].drop_duplicates("review_id")
    frame = frame.merge(said[["review_id", "label"]], on="review_id", how="left")
    return frame[frame["text"].notna()].assign(text_clean=lambda f: clean_texts(f["text"]))[
        ["review_id", "text_clean", "label"]
    ]


def _half(reviews: pd.DataFrame, seed: int) -> np.ndarray:
    """Which reviews are training data: by groups of near-duplicates."""
    groups = np.array(near_duplicate_groups(reviews["text_clean"].tolist(), similarity=0.6))
    names, places = np.unique(groups, return_inverse=True)
    chosen: np.ndarray = (np.random.default_rng(seed).random(len(names)) < 0.5)[places]
    return chosen
