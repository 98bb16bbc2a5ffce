from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from reviewclf.labeling.annotators.keywords import keyword_label
from reviewclf.labeling.label_studio import label_studio_config
from reviewclf.labeling.review import review_queue
from reviewclf.labeling.votes import aggregate_llm_votes
from reviewclf.settings import load_settings
from reviewclf.taxonomy import Taxonomy

TAXONOMY = Taxonomy.load(load_settings(_env_file=None).taxonomy)


def labels(rows: list[tuple[str, str, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["text_hash", "label", "confidence", "agreement"])


@pytest.mark.slow
def test_queue_of_real_votes_holds_the_disagreements_with_a_careful_reader(shared_data: Path) -> None:
    votes = pd.read_csv(shared_data / "votes.csv", dtype={"review_id": str}).rename(columns={"review_id": "text_hash"})
    texts = pd.read_csv(shared_data / "reviews.csv", dtype=str).set_index("review_id")["text"]
    careful = votes[votes["annotator"] == "reader-2"].set_index("text_hash")["label"]
    quick = votes[votes["annotator"] == "reader-1"]
    stems = pd.DataFrame(
        {
            "text_hash": quick["text_hash"],
            "annotator": "keywords",
            "prompt": "stems@1",
            "draw": 0,
            "label": [keyword_label(texts[key], TAXONOMY) for key in quick["text_hash"]],
            "confidence": 0.6,
        }
    )
    decided = aggregate_llm_votes(pd.concat([quick, stems], ignore_index=True), TAXONOMY.names)
    queue = review_queue(decided, texts.to_dict(), TAXONOMY.keyword_stems)
    assert len(queue) == len(decided)
    wrong = (queue["label"] != queue["text_hash"].map(careful)).to_numpy()
    by_chance = 50 * wrong.mean()
    assert wrong[:50].sum() >= 3 * by_chance


def test_low_agreement_low_confidence_and_rare_classes_come_first() -> None:
    n = 40
    rows = [(f"{i:02d}", "обувь" if i % 2 else "одежда", 0.9, 1.0) for i in range(n)]
    texts = {f"{i:02d}": ("ботинки жмут" if i % 2 else "платье село") + f" {i}" for i in range(n)}
    rows[10] = ("10", "одежда", 0.9, 0.5)
    rows[20] = ("20", "одежда", 0.3, 1.0)
    rows[31] = ("31", "одежда", 0.9, 1.0)  # reads like shoes
    queue = review_queue(labels(rows), texts, TAXONOMY.keyword_stems)
    assert set(queue["text_hash"][:3]) == {"10", "20", "31"}
    by_hash = queue.set_index("text_hash")
    assert "50% of the votes" in by_hash.loc["10", "reason"]
    assert "confidence 0.30" in by_hash.loc["20", "reason"]
    assert "reads like «обувь»" in by_hash.loc["31", "reason"]
    assert queue["suspicion"].between(0, 1).all()
    assert queue["suspicion"].is_monotonic_decreasing


def test_queue_does_not_depend_on_the_order_of_rows() -> None:
    rows = [(f"{i:02d}", "обувь" if i % 3 else "одежда", 0.5 + i / 100, 1.0) for i in range(30)]
    texts = {f"{i:02d}": f"ботинки {i}" for i in range(30)}
    shuffled = labels(rows).sample(frac=1.0, random_state=1)
    pd.testing.assert_frame_equal(
        review_queue(labels(rows), texts, TAXONOMY.keyword_stems), review_queue(shuffled, texts, TAXONOMY.keyword_stems)
    )


@pytest.mark.parametrize("n", [0, 1, 5])
def test_a_handful_of_labels_is_a_queue_too(n: int) -> None:
    rows = [(str(i), "обувь", 0.5, 1.0) for i in range(n)]
    queue = review_queue(labels(rows), {str(i): "ботинки" for i in range(n)}, TAXONOMY.keyword_stems)
    assert len(queue) == n
    assert {"suspicion", "reason"} <= set(queue.columns)


def test_label_studio_configuration_names_every_category() -> None:
    from xml.etree import ElementTree

    root = ElementTree.fromstring(  # noqa: S314 - made two lines above
        label_studio_config([*TAXONOMY.names, 'с "кавычками" & <'])
    )
    assert [choice.get("value") for choice in root.iter("Choice")] == [*TAXONOMY.names, 'с "кавычками" & <']
    assert {tag.get("name") for tag in root.iter("Choices")} == {"label"}
