"""Labelling with a store, a registry and a model that costs something: killed, repeated, on a budget, corrected by people."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from reviewclf import tables
from reviewclf.cli import app
from reviewclf.errors import LabelingError
from reviewclf.labeling.asking import journaled_votes, run_llm
from reviewclf.manifest import Manifest
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import label as label_stages
from reviewclf.stages import review as review_stages
from reviewclf.store import Store
from tests.integration.test_stages import run_ingest, write_reviews
from tests.tiny_llm import save_tiny

ROOT = Path(__file__).resolve().parents[2]


MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def make_settings(tmp_path: Path, model: str) -> MakeSettings:
    """Settings of a home with so many reviews to take in and label."""

    def make(n: int = 40, **llm: object) -> Settings:
        rows = [(str(i), f"Платье номер {i} село отлично, швы ровные" if i % 2 else f"Ботинки {i} жмут") for i in range(n)]
        return load_settings(
            _env_file=None,
            home=tmp_path / "home",
            source=write_reviews(tmp_path / "reviews.csv", rows),
            gold=None,
            llm={"backend": "transformers", "model": model, "votes": 3, **llm},
        )

    return make


def label(settings: Settings) -> tuple[Manifest, Manifest]:
    selected = label_stages.select(settings)
    annotated = [label_stages.annotate(settings, selected, shard) for shard in selected.details["shards"]]  # type: ignore[union-attr, arg-type]
    collected = review_stages.collect(settings, selected, annotated)
    return collected, label_stages.aggregate(settings, selected, annotated)


@pytest.fixture
def labelled(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> MakeSettings:
    """As `make_settings`; the reviews are taken in and labelled, and :func:`review` works with these settings."""

    def make(n: int, **llm: object) -> Settings:
        settings = make_settings(n, **llm)
        run_ingest(settings)
        label(settings)
        monkeypatch.setattr("reviewclf.cli.load_settings", lambda: settings)
        return settings

    return make


def review(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["review", *map(str, arguments)])


def votes_of(settings: Settings) -> pd.DataFrame:
    store = Store(settings.store_uri)
    votes = store.read_table(store.snapshot().keys("votes"), schema=tables.VOTE_SCHEMA).to_pandas()
    return votes[~votes["annotator"].str.startswith("keywords@")].reset_index(drop=True)


IDENTITY = ["text_hash", "annotator", "prompt", "draw"]

ANNOTATE = """
import sys
from reviewclf.manifest import Manifest
from reviewclf.settings import Settings
from reviewclf.stages import label
import reviewclf.labeling.annotators.transformers as annotators

# One review a batch and a little time each, so that there is a middle to be killed in.
import time
forward = annotators.TransformersAnnotator._forward
def slow(self, question, rows):
    time.sleep(0.05)
    return forward(self, question, rows)
annotators.TransformersAnnotator._forward = slow
settings = Settings.model_validate_json(sys.argv[1])
selected = Manifest.model_validate_json(sys.argv[2])
label.annotate(settings, selected, {"shard": 0, "shards": 1})
"""


def test_killed_run_resumes_and_ends_like_an_undisturbed_one(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(20, batch_tokens=1)
    run_ingest(settings)
    selected = label_stages.select(settings)
    store = Store(settings.store_uri)
    command = [sys.executable, "-c", ANNOTATE, settings.model_dump_json(), selected.model_dump_json()]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(journaled_votes(store)) < 15:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    kept = journaled_votes(store)
    assert 15 <= len(kept) < 60
    _, labelled = label(settings)
    votes = votes_of(settings)
    assert len(votes) == 60
    assert not votes.duplicated(IDENTITY).any()
    # What was answered before the kill is what is in the table: nothing was asked twice.
    taken = votes.set_index(IDENTITY)["seconds"]
    assert all(taken[identity] == vote.seconds for identity, vote in kept.items())
    undisturbed = make_settings(20, batch_tokens=1).model_copy(update={"home": tmp_path / "other"})
    run_ingest(undisturbed)
    _, expected = label(undisturbed)
    assert labelled.details["labels_by_class"] == expected.details["labels_by_class"]
    columns = [*IDENTITY, "label", "confidence"]
    pd.testing.assert_frame_equal(
        votes[columns].sort_values(IDENTITY, ignore_index=True),
        votes_of(undisturbed)[columns].sort_values(IDENTITY, ignore_index=True),
    )


def test_only_new_texts_are_asked_about_and_a_changed_prompt_asks_again(
    labelled: MakeSettings, make_settings: MakeSettings, tmp_path: Path
) -> None:
    labelled(10)
    settings = make_settings(14)
    run_ingest(settings)
    collected, _ = label(settings)
    assert collected.counts["new_votes"] == 4 * 3 + 4  # three by the model and one by the stems for each new review
    assert label(settings)[0].counts["new_votes"] == 0
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "one.yaml").write_text("{id: one, version: 1, system: 'Выбери\n\n{names}', user: '{text}'}", encoding="utf-8")
    changed = make_settings(14, prompts=str(folder), votes=1)
    collected, labelled = label(changed)
    assert collected.counts["new_votes"] == 14
    assert len(votes_of(changed)) == 14 * 3 + 14
    costs = labelled.details["costs"]
    assert costs["tokens_in"] > 0  # type: ignore[index, call-overload, operator]


def test_budget_ends_the_night_and_the_next_one_goes_on(make_settings: MakeSettings) -> None:
    settings = make_settings(max_reviews=15)
    run_ingest(settings)
    seen = []
    for _ in range(3):
        collected, _ = label(settings)
        seen.append(len(votes_of(settings)) // 3)
        stopped = collected.details["stopped"]
    assert seen == [15, 30, 40]
    assert stopped == []


def test_people_win_and_their_answers_are_taken_once(labelled: MakeSettings, tmp_path: Path) -> None:
    settings = labelled(30)
    out = tmp_path / "queue.csv"
    answer = review("export", out, "--rows", "10")
    assert answer.exit_code == 0, answer.output
    queue = pd.read_csv(out)
    assert len(queue) == 10
    queue["answer"] = queue["answer"].astype("object")
    queue.loc[:4, "answer"] = "посуда"
    queue["annotator"] = "Оля"
    queue.to_csv(out, index=False)
    answer = review("import", out)
    assert answer.exit_code == 0, answer.output
    assert "5 answers taken in" in answer.output
    store = Store(settings.store_uri)
    labels = store.read_table(store.snapshot().keys("labels")).to_pandas().set_index("text_hash")
    decided = labels.loc[queue["text_hash"][:5]]
    assert set(decided["label"]) == {"посуда"}
    assert set(decided["origin"]) == {"human"}
    assert set(decided["decision"]) == {"kept"}
    assert "0 answers taken in, 0 labels changed" in review("import", out).output
    # A change of mind counts; who has answered is not asked again.
    queue.loc[0, "answer"] = "обувь"
    queue.to_csv(out, index=False)
    assert "1 answers taken in, 1 labels changed" in review("import", out).output
    again = review_stages.make_queue(settings)
    assert not set(again["text_hash"]) & set(queue["text_hash"][:5])


def test_answers_that_fit_nothing_are_reported(labelled: MakeSettings, tmp_path: Path) -> None:
    labelled(4)
    path = tmp_path / "answers.csv"
    path.write_text("review_id,answer\n1,обувь\n99,обувь\n2,еда\n", encoding="utf-8")
    answer = review("import", path)
    assert answer.exit_code == 1
    assert "1 answers taken in" in answer.output
    assert "99 names no review" in answer.output
    assert "row 3: 'еда' is not in the taxonomy" in answer.output


def test_label_studio_tasks_come_with_their_configuration(labelled: MakeSettings, tmp_path: Path) -> None:
    labelled(12)
    out = tmp_path / "tasks.json"
    assert review("export", out).exit_code == 0
    tasks = json.loads(out.read_text(encoding="utf-8"))
    assert len(tasks) == 12
    assert out.with_suffix(".xml").exists()
    result = {**tasks[0]["predictions"][0]["result"][0], "value": {"choices": ["посуда"]}}
    tasks[0]["annotations"] = [{"completed_by": {"email": "o@example.org"}, "result": [result]}]
    out.write_text(json.dumps(tasks), encoding="utf-8")
    answer = review("import", out)
    assert "1 answers taken in" in answer.output, answer.output


def test_mlflow_holds_costs_reliability_and_prompts(make_settings: MakeSettings, tmp_path: Path) -> None:
    import mlflow

    gold = tmp_path / "gold.csv"
    pd.DataFrame({"text": [f"Платье {i} отличное" for i in range(12)], "label": "одежда"}).to_csv(gold, index=False)
    settings = make_settings(6, price_in=1.0, price_out=2.0).model_copy(update={"gold": str(gold)})
    run_ingest(settings)
    for _ in range(2):
        label(settings)
    client = mlflow.MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name("review-classifier")
    runs = [r for r in client.search_runs([experiment.experiment_id]) if r.data.tags.get("reviewclf.kind") == "labelling"]
    asked = [run for run in runs if run.data.metrics.get("cost/tokens_in")]
    assert len(asked) == 1
    metrics = asked[0].data.metrics
    assert metrics["gold/rows"] == 12
    assert 0.0 <= metrics["gold/ece"] <= 1.0
    assert metrics["cost/cost_per_1000_reviews"] > 0
    assert {item.path for item in client.list_artifacts(asked[0].info.run_id, "labels")} == {
        "labels/reliability.json",
        "labels/reliability.png",
    }
    mlflow.set_tracking_uri(settings.tracking_uri)
    prompt = mlflow.genai.load_prompt("prompts:/category-guide@latest")
    assert prompt.version == 1
    assert "{{categories}}" in str(prompt.template)


def test_run_llm_votes_on_texts_alone(make_settings: MakeSettings) -> None:
    votes = run_llm(["Платье село", "платье СЕЛО!", "", "Ботинки жмут"], 4, settings=make_settings())
    assert len(votes) == 3 * 4
    assert votes["draw"].max() == 1
    assert votes.loc[votes["label"].isna(), "reason"].unique().tolist() == ["no word is left in the text"]
    with pytest.raises(LabelingError, match="REVIEWCLF_LLM__MODEL"):
        run_llm(["Платье"], 1, settings=make_settings(model="/nowhere"))
