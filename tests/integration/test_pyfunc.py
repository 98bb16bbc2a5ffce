"""The logged model as others use it: through MLflow, with texts in every form, and what it says to anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from reviewclf.registry.model import log_model
from reviewclf.registry.tracking import Tracker
from tests.small_models import REVIEWS, answers_of, save_small


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("mlflow")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db")
    run = tracker.open_run("key", kind="candidate", name="small", description="")
    saved: Path = save_small(folder / "model")
    return mlflow.pyfunc.load_model(log_model(tracker, run, saved, packages=["skops"], example=REVIEWS[0], metadata={}))


@pytest.mark.case(79)
@pytest.mark.parametrize(
    "given",
    [
        REVIEWS,
        tuple(REVIEWS),
        np.array(REVIEWS),
        np.array(REVIEWS, dtype=object).reshape(-1, 1),
        pd.Series(REVIEWS),
        pd.DataFrame({"text": REVIEWS}),
        pd.DataFrame({"text": pd.Categorical(REVIEWS), "title": REVIEWS[::-1]}),
        pd.DataFrame({"text": pd.array(REVIEWS, dtype="string[pyarrow]")}),
        pd.DataFrame({"stars": [1, 2, 3], "отзыв": REVIEWS}),
        pd.DataFrame({"0": REVIEWS}),
        {"text": REVIEWS},
        {"text": np.array(REVIEWS), "stars": [1, 2, 3]},
        [{"text": review} for review in REVIEWS],
    ],
    ids=str,
)
def test_texts_are_taken_in_every_form(model: Any, given: Any) -> None:
    assert model.predict(given)["label"].tolist() == answers_of(0)


@pytest.mark.case(79)
def test_one_text_is_one_review(model: Any) -> None:
    for given in (REVIEWS[0], {"text": REVIEWS[0]}, np.array(REVIEWS[0])):
        assert model.predict(given)["label"].tolist() == answers_of(0)[:1]


def test_missing_texts_are_scored_as_empty_ones_and_rows_keep_their_index(model: Any) -> None:
    frame = pd.DataFrame({"text": [REVIEWS[1], None, float("nan"), pd.NA, ""]}, index=list("abcde"))
    answers = model.predict(frame, params={"abstain": False})
    assert answers.index.tolist() == list("abcde")
    assert answers["label"].iloc[0] == answers_of(0)[1]
    assert answers["confidence"].iloc[1:].nunique() == 1
    assert model.predict(pd.DataFrame({"text": [float("nan")]}))["confidence"].iloc[0] == answers["confidence"].iloc[4]
    assert len(model.predict([])) == len(model.predict(pd.DataFrame({"text": []}))) == 0


@pytest.mark.case(79)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "int is nothing that can be classified"),
        (b"text", "bytes is nothing"),
        ([1, 2], "row 0 holds int in place of a text"),
        (pd.DataFrame({"text": [1, 2]}), "row 0 holds int in place of a text"),
        ([REVIEWS[0], 3.5], "row 1 holds float in place of a text"),
        (pd.DataFrame({"a": [1], "b": [2]}), r"has no column `text` \(columns: a, b; none of them holds texts\)"),
        (pd.DataFrame({"title": ["a"], "body": ["b"]}), "columns: title, body; 2 of them hold texts"),
        (np.array([["a", "b"]]), r"shape \(1, 2\) holds more than one column"),
    ],
    ids=str,
)
def test_anything_else_is_told_what_is_taken(model: Any, given: Any, said: str) -> None:
    with pytest.raises(MlflowException, match=rf"{said}.*give a text, a list, array or Series of texts, or a table") as caught:
        model.predict(given)
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["text"], "data": [[review] for review in REVIEWS]}},
        {"dataframe_records": [{"text": review} for review in REVIEWS]},
        {"instances": REVIEWS},
        {"instances": [{"text": review} for review in REVIEWS]},
        {"inputs": REVIEWS},
        {"inputs": {"text": REVIEWS}},
    ],
    ids=str,
)
def test_every_format_of_mlflows_own_server_is_answered(model: Any, body: dict[str, Any]) -> None:
    schema = model.metadata.get_input_schema()
    answer = scoring_server.invocations(json.dumps(body), "application/json", model, schema)
    assert answer.status == 200
    assert [row["label"] for row in json.loads(answer.response)["predictions"]] == answers_of(0)
