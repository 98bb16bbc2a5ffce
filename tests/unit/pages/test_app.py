"""The pages' application without Airflow: what it answers to whom, also when MLflow is empty or away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from reviewclf.pages.app import Change, create_app
from reviewclf.pages.person import Person
from reviewclf.pages.state import State
from reviewclf.settings import load_settings

HTML = {"Accept": "text/html"}
ACTION = {"X-Reviewclf-Action": "1", "Origin": "http://testserver"}

Client = Callable[..., TestClient]

ANNA = Person("anna", may_promote=True, may_roll_back=True)
VIKTOR = Person("viktor", may_promote=False, may_roll_back=False)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(*, mlflow: str | None = None, person: Person | int = ANNA, changes: list[Change] | None = None) -> TestClient:
        if mlflow is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

        def who() -> Person:
            if isinstance(person, int):
                raise HTTPException(person)
            return person

        app = create_app(
            State(load_settings(_env_file=None, home=tmp_path)),
            person=who,
            login=lambda back: f"/login?next={back}",
            announce=None if changes is None else changes.append,
        )
        return TestClient(app, follow_redirects=False)

    return make


def test_an_empty_registry_is_said_to_be_empty(client: Client) -> None:
    page = client().get("/promotion", headers=HTML)
    assert page.status_code == 200
    assert "No model has been registered yet" in page.text
    assert "<dialog" not in page.text
    russian = client().get("/promotion", headers={**HTML, "Accept-Language": "ru"})
    assert '<html lang="ru">' in russian.text


def test_an_mlflow_that_is_away_gives_a_page_that_says_so(client: Client) -> None:
    away = client(mlflow="http://127.0.0.1:9")
    page = away.get("/promotion", headers=HTML)
    assert page.status_code == 502
    assert "MLflow cannot be asked" in page.text
    assert "http://127.0.0.1:9" in page.text
    answer = away.post("/promotion/rollback", json={"reason": "why"}, headers=ACTION)
    assert answer.status_code == 502
    assert "127.0.0.1:9" in answer.json()["error"]


def test_pages_take_scripts_and_styles_from_themselves_alone(client: Client) -> None:
    page = client().get("/promotion", headers=HTML)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http:" not in page.text.replace("http://www.w3.org", "")
    assert " style=" not in page.text
    for path in ("page.css", "page.js", "theme.js", "icon.svg", "icon-dark.svg"):
        assert client().get(f"/static/{path}").status_code == 200


def test_who_is_not_logged_in_is_led_to_the_login_and_back(client: Client) -> None:
    stranger = client(person=401)
    page = stranger.get("/promotion?version=7", headers=HTML)
    assert (page.status_code, page.headers["location"]) == (302, "/login?next=/promotion?version=7")
    assert stranger.get("/promotion").status_code == 401
    assert stranger.post("/promotion/rollback", json={"reason": "why"}, headers=ACTION).status_code == 401


def test_who_may_not_see_the_page_is_told_what_it_takes(client: Client) -> None:
    page = client(person=403).get("/promotion", headers=HTML)
    assert page.status_code == 403
    assert "reviews_retrain" in page.text


@pytest.mark.parametrize(
    "body", [{}, {"reason": ""}, {"reason": "   "}, {"reason": "x" * 1001}, {"reason": "why", "force": True}]
)
def test_an_action_needs_a_reason_and_nothing_it_does_not_know(client: Client, body: dict[str, object]) -> None:
    answer = client().post("/promotion/rollback", json=body, headers=ACTION)
    assert answer.status_code == 422
    assert answer.json()["error"]


@pytest.mark.parametrize("version", ["", "x", "-1", "1; drop", "1" * 10])
def test_a_version_is_a_number(client: Client, version: str) -> None:
    assert client().post("/promotion/promote", json={"reason": "why", "version": version}, headers=ACTION).status_code == 422
    assert client().get("/promotion", params={"version": version}, headers=HTML).status_code == 422


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"X-Reviewclf-Action": "1"}, 403),
        ({"Origin": "http://testserver"}, 403),
        ({**ACTION, "Origin": "http://testserver:5000"}, 403),
        ({**ACTION, "Origin": "null"}, 403),
        ({**ACTION, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**ACTION, "Content-Type": "text/plain"}, 415),
    ],
)
def test_what_another_page_could_send_is_refused(client: Client, headers: dict[str, str], status: int) -> None:
    sent = {"Content-Type": "application/json", **headers}
    changes: list[Change] = []
    answer = client(changes=changes).post("/promotion/rollback", content='{"reason": "why"}', headers=sent)
    assert (answer.status_code, changes) == (status, [])


def test_nothing_to_roll_back_to_is_said(client: Client) -> None:
    changes: list[Change] = []
    answer = client(changes=changes).post("/promotion/rollback", json={"reason": "why"}, headers=ACTION)
    assert answer.status_code == 502
    assert "nothing to roll back to" in answer.json()["error"]
    assert changes == []


def test_who_may_only_look_moves_nothing(client: Client) -> None:
    onlooker = client(person=VIKTOR)
    for action, body in (("rollback", {"reason": "why"}), ("promote", {"reason": "why", "version": "1"})):
        answer = onlooker.post(f"/promotion/{action}", json=body, headers=ACTION)
        assert answer.status_code == 403
        assert "right to trigger" in answer.json()["error"]


def test_data_docs_are_served_from_their_folder_alone_and_without_an_origin(client: Client, tmp_path: Path) -> None:
    site = tmp_path / "data_docs" / "gx" / "uncommitted" / "data_docs" / "local_site"
    (site / "static").mkdir(parents=True)
    (site / "index.html").write_text("<script>steal()</script>")
    (site / "static" / "a.css").write_text("a {}")
    (tmp_path / "secret.txt").write_text("secret")
    (site / "link.html").symlink_to(tmp_path / "secret.txt")
    page = client().get("/docs/index.html")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("sandbox")
    assert "allow-same-origin" not in page.headers["content-security-policy"]
    assert client().get("/docs/").text == page.text
    for path in (
        "/docs/%2e%2e/%2e%2e/secret.txt",
        f"/docs/{tmp_path}/secret.txt",
        "/docs/link.html",
        "/docs/%00",
        "/docs/static",
    ):
        assert client().get(path).status_code == 404, path
    # Styles say nothing about data; a page without an origin asks for them without its cookies.
    assert client(person=401).get("/docs/static/a.css").status_code == 200
    for path in ("/docs/static/%2e%2e/index.html", "/docs/static/..%2findex.html"):
        assert client(person=401).get(path).status_code != 200, path
