"""Labelling costs what is new: which reviews are looked at, which labels are decided anew, which parts are rewritten."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reviewclf import tables
from reviewclf.labeling import labels as labelling
from reviewclf.labeling import texts
from reviewclf.manifest import Manifest
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import label as stages
from reviewclf.stages import review as review_stages
from reviewclf.store import Store
from reviewclf.taxonomy import Taxonomy

HEADER = "review_id,annotator,label,confidence\n"


@pytest.fixture
def make_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(stages, "_log", lambda *_: None)
    return lambda votes="", **overrides: load_settings(
        _env_file=None,
        home=tmp_path / "home",
        gold=None,
        votes=write(tmp_path / "votes.csv", HEADER + votes) if votes else None,
        **overrides,
    )


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def hashed(number: int) -> str:
    """Hashes that begin differently, as real ones do."""
    return f"{number:032x}"[::-1]


def add(settings: Settings, numbers: Iterable[int], table: str = "clean") -> None:
    store = Store(settings.store_uri)
    rows = [
        {"review_id": str(n), "text": f"Платье {n}", "text_clean": f"Платье {n}", "text_hash": hashed(n), "source": "a"}
        for n in numbers
    ]
    if table == "duplicates":
        rows = [row | {"review_id": f"copy of {row['review_id']}", "duplicate_of": row["review_id"]} for row in rows]
    base = store.snapshot()
    store.commit(base, key=f"night {base.version}", append={table: store.put_part(rows, tables.SCHEMAS[table])})


def night(settings: Settings) -> tuple[Manifest, Manifest]:
    selected = stages.select(settings)
    shards: Any = selected.details["shards"]
    annotated = [stages.annotate(settings, selected, shard) for shard in shards]
    return selected, stages.aggregate(settings, selected, annotated)


def looked_at(settings: Settings) -> tuple[int, int]:
    counts = night(settings)[0].counts
    return counts["looked_at"], counts["pending"]


def labels_of(settings: Settings) -> pd.DataFrame:
    store = Store(settings.store_uri)
    return store.read(store.snapshot(), "labels").to_pandas().sort_values("text_hash", ignore_index=True)


def test_only_what_came_in_is_looked_at_until_somebody_else_votes_on_every_text(make_settings: Callable[..., Settings]) -> None:
    add(make_settings(), range(6))
    assert looked_at(make_settings()) == (6, 6)
    assert looked_at(make_settings()) == (0, 0)
    add(make_settings(), range(6, 8))
    assert looked_at(make_settings()) == (2, 2)
    # Surer stems are other voters.
    assert looked_at(make_settings(aggregation={"keyword_confidence": 0.7})) == (8, 8)


def test_a_changed_file_of_votes_is_held_against_the_texts_that_it_names(make_settings: Callable[..., Settings]) -> None:
    add(make_settings(), range(6))
    night(make_settings("1,reader,обувь,0.9\n"))
    assert looked_at(make_settings("1,reader,обувь,0.9\n2,reader,обувь,0.9\n")) == (2, 1)
    # A vote may name a copy, which comes later than the vote.
    votes = "1,reader,обувь,0.9\ncopy of 3,reader,обувь,0.9\n"
    assert night(make_settings(votes))[0].details["unmatched_votes"] == ["copy of 3"]
    add(make_settings(votes), [3, 4], "duplicates")
    assert looked_at(make_settings(votes)) == (2, 1)
    assert labels_of(make_settings())["label"].tolist() == ["одежда", "обувь", "обувь", "обувь", "одежда", "одежда"]


def test_night_without_news_leaves_the_store_as_it_is(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("1,reader,обувь,0.9\n2,reader,мебель,0.9\n3,reader,обувь,0.9\n")
    add(settings, range(6))
    night(settings)
    before = Store(settings.store_uri).snapshot()
    assert len(before.keys("quarantine")) == 1
    assert night(settings)[1].counts["changed"] == 0
    assert Store(settings.store_uri).snapshot() == before


def test_repeated_task_counts_the_same_changes(make_settings: Callable[..., Settings]) -> None:
    add(make_settings(), range(6))
    night(make_settings())
    settings = make_settings("1,reader,обувь,0.9\n2,reader,обувь,0.9\n")
    add(settings, range(6, 9))
    selected = stages.select(settings)
    annotated = [stages.annotate(settings, selected, {"shard": 0, "shards": 1})]
    counted = [stages.aggregate(settings, selected, annotated) for _ in range(2)]
    assert counted[0] == counted[1]
    assert counted[0].counts["changed"] == 5
    assert counted[0].counts["labels"] == 9


def test_shards_hold_all_that_is_pending_and_are_read_alone(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_BATCH", 4)
    settings = make_settings(llm={"shard_rows": 3})
    add(settings, range(7))
    add(settings, range(7, 11))
    selected = stages.select(settings)
    shards: Any = selected.details["shards"]
    annotated = [stages.annotate(settings, selected, shard) for shard in shards]
    assert [manifest.counts["reviews"] for manifest in annotated] == [3, 3, 3, 2]
    store = Store(settings.store_uri)
    assert sorted(row["text_hash"] for one in annotated for row in store.read(one, "votes").to_pylist()) == [
        hashed(n) for n in range(11)
    ]
    # A shard that did not come to its end leaves its reviews for the next night.
    stages.aggregate(settings, selected, annotated[:-1])
    assert looked_at(settings) == (11, 2)


def test_parts_without_a_changed_label_stay(make_settings: Callable[..., Settings]) -> None:
    for start in (0, 3):
        add(make_settings(), range(start, start + 3))
        night(make_settings())
    store = Store(make_settings().store_uri)
    first, second = store.snapshot().keys("labels")
    night(make_settings("4,reader,обувь,0.9\n"))
    after = store.snapshot().keys("labels")
    assert after[0] == first
    assert second not in after
    assert labels_of(make_settings())["label"].tolist() == ["одежда"] * 4 + ["обувь", "одежда"]


@pytest.mark.parametrize("method", ["posterior", "majority", "mean_confidence", "dawid_skene"])
def test_labels_night_by_night_are_those_of_all_votes_at_once(
    make_settings: Callable[..., Settings], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "_BATCH", 4)
    options = {"method": method}
    votes = ""
    for start in (0, 5, 10):
        for n in range(start, start + 5):
            votes += "".join(
                f"{n},{who},{label},0.{8 - n % 3}\n" for who, label in (("a", "обувь"), ("b", "посуда"))[: 1 + n % 2]
            )
        # Somebody reads an earlier text again.
        votes += f"{start // 2},c{start},текстиль,0.9\n"
        settings = make_settings(votes, aggregation=options)
        add(settings, range(start, start + 5))
        night(settings)
    store, taxonomy = Store(settings.store_uri), Taxonomy.load(settings.taxonomy)
    table = store.read(store.snapshot(), "votes").to_pandas().sort_values(labelling.IDENTITY, ignore_index=True)
    wanted = labelling.decide_labels(table, settings, taxonomy)[tables.LABEL_SCHEMA.names]
    pd.testing.assert_frame_equal(labels_of(settings), wanted.reset_index(drop=True), check_dtype=False)


def test_other_rules_decide_all_labels_anew_and_the_old_ones_bring_them_back(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("".join(f"{n},reader,обувь,0.{n + 4}\n" for n in range(5)))
    add(settings, range(5))
    night(settings)
    before = labels_of(settings)
    other = settings.model_copy(update={"aggregation": settings.aggregation.model_copy(update={"min_confidence": 0.99})})
    assert set(night(other)[1].details["decisions"]) == {"review"}
    night(settings)
    pd.testing.assert_frame_equal(labels_of(settings), before)


def test_text_that_lost_all_its_votes_loses_its_label(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("0,reader,обувь,0.9\n")
    store = Store(settings.store_uri)
    add(settings, range(2))
    night(settings)
    votes = store.read(store.snapshot(), "votes").to_pylist()
    kept = [vote for vote in votes if vote["text_hash"] != hashed(0)]
    store.commit(store.snapshot(), key="erase", replace={"votes": store.put_part(kept, tables.VOTE_SCHEMA)})
    night(settings.model_copy(update={"aggregation": settings.aggregation.model_copy(update={"drop_confidence": 0.1})}))
    assert labels_of(settings)["text_hash"].tolist() == [hashed(1)]


def test_queue_is_chosen_among_the_least_trusted_labels_and_others_in_turn(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review_stages, "_LOOKED_AT", 4)
    votes, others = "", set()
    for start in (0, 20):
        votes += "".join(f"{n},reader,посуда,0.{5 + n % 5}\n" for n in range(start, start + 20))
        settings = make_settings(votes)
        add(settings, range(start, start + 20))
        night(settings)
        queue = review_stages.make_queue(settings)
        assert len(queue) == 4
        least = set(labels_of(settings).nsmallest(2, "confidence", keep="all")["text_hash"])
        assert len(set(queue["text_hash"]) & least) >= 2
        others.add(frozenset(set(queue["text_hash"]) - least))
    assert len(others) == 2
