"""The promotion page in a real Airflow over a real MLflow, in a browser: seen, compared, promoted, rolled back, refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FrameLocator, Page, expect

from reviewclf.registry.tracking import Tracker
from tests.ui.conftest import Platform, Visitor

PAGE = "/reviewclf/promotion"

Visit = Callable[..., Visitor]


def open_in_airflow(page: Page) -> FrameLocator:
    page.get_by_role("link", name="Promotion").click()
    frame = page.frame_locator("iframe[title=Promotion]")
    expect(frame.get_by_role("heading", name="Promotion", level=1)).to_be_visible()
    return frame


def metric(page: Page, name: str) -> list[str]:
    row = page.locator(".metrics tbody tr").filter(has=page.get_by_role("rowheader", name=name, exact=True))
    return [cell.split(",")[0].strip() for cell in row.locator("td").all_inner_texts()]


def cookies_of(visitor: Visitor) -> dict[str, str]:
    return {cookie["name"]: cookie["value"] for cookie in visitor.context.cookies()}


def promote(platform: Platform, cookies: dict[str, str], version: str, **headers: str) -> httpx.Response:
    body = {"version": version, "reason": "test", "champion": platform.aliases()["champion"]}
    return httpx.post(
        f"{platform.airflow}{PAGE}/promote", json=body, cookies=cookies, headers=headers, trust_env=False, timeout=60
    )


def test_figures_side_by_side_are_those_of_mlflow(platform: Platform, visit: Visit) -> None:
    page = visit().page
    page.goto(PAGE)
    aliases = platform.aliases()
    tracker = Tracker(platform.mlflow)
    measured = [
        tracker.client.get_run(platform.version(aliases[alias])["run_id"]).data.metrics for alias in ("champion", "challenger")
    ]
    for name, key in (("Weighted F1", "gold/weighted_f1"), ("Macro F1", "gold/macro_f1"), ("Accuracy", "gold/accuracy")):
        assert metric(page, name)[:2] == [f"{figures[key]:.3f}" for figures in measured]
    report = tracker.read_json(platform.version(aliases["challenger"])["run_id"], "gate/report.json")
    assert page.locator(".rules tbody tr").count() == len(report["rules"])
    answers = [
        {
            row["review_id"]: row
            for row in tracker.read_json(platform.version(aliases[alias])["run_id"], "evaluation/gold_answers.json")
        }
        for alias in ("champion", "challenger")
    ]
    differing = [key for key, row in answers[0].items() if row["predicted"] != answers[1][key]["predicted"]]
    assert differing
    expect(page.get_by_role("link", name=f"All {len(differing)}")).to_be_visible()
    assert page.locator(".matrix").count() == 2
    assert page.locator(".matrix").first.locator("td.hit").all_inner_texts() != []


def test_another_version_can_be_chosen(platform: Platform, visit: Visit) -> None:
    page = visit().page
    page.goto(PAGE)
    previous = platform.aliases()["previous"]
    page.get_by_label("Compare the champion with").select_option(previous)
    expect(page.get_by_role("columnheader", name=f"Previous {previous}").first).to_be_visible()
    assert f"version={previous}" in page.url


def test_promotion_and_rollback_move_the_aliases_and_are_recorded(platform: Platform, visit: Visit) -> None:
    before = platform.aliases()
    frame = open_in_airflow(visit().page)

    frame.get_by_role("button", name="Promote…").click()
    dialog = frame.get_by_role("dialog")
    expect(dialog).to_contain_text(f"Champion: {before['champion']} → {before['challenger']}")
    dialog.get_by_role("button", name=f"Promote version {before['challenger']}").click()
    expect(dialog.get_by_role("alert")).to_have_text("Give a reason.")
    assert platform.aliases() == before
    dialog.get_by_label("Reason (required)").fill("linear-svc wins on gold")
    dialog.get_by_role("button", name=f"Promote version {before['challenger']}").click()
    expect(frame.get_by_role("status")).to_have_text(f"Version {before['challenger']} is the champion now.")
    promoted = platform.aliases()
    assert promoted == {"champion": before["challenger"], "previous": before["champion"]}
    tags = platform.version(before["challenger"])["tags"]
    assert tags["reviewclf.promoted_by"] == "admin"
    assert tags["reviewclf.promotion_reason"] == "linear-svc wins on gold"

    frame.get_by_role("button", name="Roll back…").click()
    dialog = frame.get_by_role("dialog")
    dialog.get_by_label("Reason (required)").fill("complaints from production")
    dialog.get_by_role("button", name=f"Roll back to version {before['champion']}").click()
    expect(frame.get_by_role("status")).to_have_text(f"Rolled back: version {before['champion']} is the champion now.")
    assert platform.aliases()["champion"] == before["champion"]
    newest = frame.get_by_role("region", name="Promotions and rollbacks").locator("tbody tr").first
    expect(newest).to_contain_text(f"rolled back {before['challenger']} → {before['champion']}")
    expect(newest).to_contain_text("complaints from production")
    expect(newest).to_contain_text("admin")


def test_a_decision_on_an_outdated_page_is_refused(platform: Platform, visit: Visit) -> None:
    visitor = visit()
    champion = platform.aliases()["champion"]
    answer = httpx.post(
        f"{platform.airflow}{PAGE}/rollback",
        json={"reason": "test", "champion": "999"},
        cookies=cookies_of(visitor),
        headers={"X-Reviewclf-Action": "1", "Origin": platform.airflow},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 409
    assert f"version {champion}" in answer.json()["error"]
    assert platform.aliases()["champion"] == champion


def test_who_may_only_look_finds_no_buttons_and_is_refused(platform: Platform, visit: Visit) -> None:
    visitor = visit("viktor")
    visitor.page.goto(PAGE)
    expect(visitor.page.get_by_role("heading", name="Side by side")).to_be_visible()
    assert visitor.page.get_by_role("button", name=re.compile("Promote|Roll back")).count() == 0
    before = platform.aliases()
    forced = {"X-Reviewclf-Action": "1", "Origin": platform.airflow}
    assert promote(platform, cookies_of(visitor), "1", **forced).status_code == 403
    assert platform.aliases() == before


def test_without_login_there_is_nothing_to_see(platform: Platform) -> None:
    page = httpx.get(f"{platform.airflow}{PAGE}", headers={"Accept": "text/html"}, trust_env=False, timeout=60)
    assert page.status_code == 302
    assert page.headers["location"].startswith("/auth/login?next=")
    for path in (PAGE, "/reviewclf/docs/index.html", "/reviewclf/gate/1", f"/reviewclf/runs/{'0' * 32}"):
        assert httpx.get(f"{platform.airflow}{path}", trust_env=False, timeout=60).status_code == 401
    assert promote(platform, {}, "1", **{"X-Reviewclf-Action": "1", "Origin": platform.airflow}).status_code in (401, 403)


def test_the_cookie_alone_moves_nothing(platform: Platform, visit: Visit) -> None:
    cookies = cookies_of(visit())
    before = platform.aliases()
    assert promote(platform, cookies, "1", Origin=platform.airflow).status_code == 403
    assert promote(platform, cookies, "1", **{"X-Reviewclf-Action": "1"}).status_code == 403
    assert promote(platform, cookies, "1", **{"X-Reviewclf-Action": "1", "Origin": platform.mlflow}).status_code == 403
    crossed = {"X-Reviewclf-Action": "1", "Origin": platform.airflow, "Sec-Fetch-Site": "same-site"}
    assert promote(platform, cookies, "1", **crossed).status_code == 403
    assert platform.aliases() == before


def test_a_token_needs_no_origin(platform: Platform) -> None:
    login = {"username": "viktor", "password": platform.passwords["viktor"]}
    token = httpx.post(f"{platform.airflow}/auth/token", json=login, trust_env=False, timeout=60).json()["access_token"]
    answer = promote(platform, {}, "1", Authorization=f"Bearer {token}", **{"X-Reviewclf-Action": "1"})
    # Past the check against forgery, stopped by what viktor may do.
    assert (answer.status_code, "reviews_promote" in answer.json()["error"]) == (403, True)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_accessible_and_fits(visit: Visit, theme: str, width: int) -> None:
    page = visit(width=width, theme=theme).page
    page.goto(PAGE)
    expect(page.get_by_role("heading", name="History")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(page) == []
    button = page.get_by_role("button", name="Roll back…")
    button.click()
    assert serious(page) == []
    page.keyboard.press("Escape")
    expect(button).to_be_focused()


def serious(page: Page) -> list[str]:
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {violation['help']}: {[node['target'] for node in violation['nodes']][:3]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


def test_language_is_the_browsers_until_one_is_chosen(visit: Visit) -> None:
    page = visit(language="ru-RU").page
    page.goto(PAGE)
    expect(page.get_by_role("heading", name="Продвижение", level=1)).to_be_visible()
    page.get_by_role("link", name="English").click()
    expect(page.get_by_role("heading", name="Promotion", level=1)).to_be_visible()
    page.goto(PAGE)
    expect(page.get_by_role("heading", name="Promotion", level=1)).to_be_visible()


def test_airflows_theme_is_followed(visit: Visit) -> None:
    page = visit(theme="light").page
    page.goto(PAGE)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.evaluate("localStorage.setItem('theme', 'dark')")
    page.reload()
    assert page.evaluate(background) != light


def test_gate_report_and_run_open_from_the_page(platform: Platform, visit: Visit) -> None:
    visitor = visit()
    frame = open_in_airflow(visitor.page)
    # Airflow's frame may open no windows; the links do so all the same.
    with visitor.context.expect_page() as opened:
        frame.get_by_role("link", name="Gate report").click()
    expect(opened.value.get_by_role("heading", level=1)).to_contain_text("Gate report")
    with visitor.context.expect_page() as opened:
        frame.get_by_role("link", name="Run in MLflow").first.click()
    assert opened.value.url.startswith(f"{platform.mlflow}/#/experiments/")


def test_links_lead_to_mlflow_and_never_out_of_the_data_docs(platform: Platform, visit: Visit) -> None:
    cookies = cookies_of(visit())
    run_id = platform.version(platform.aliases()["champion"])["run_id"]

    def get(path: str) -> httpx.Response:
        return httpx.get(f"{platform.airflow}/reviewclf{path}", cookies=cookies, trust_env=False, timeout=60)

    assert get(f"/runs/{run_id}").headers["location"].endswith(f"/runs/{run_id}")
    docs = get("/docs/index.html")
    assert docs.status_code == 200
    assert "sandbox" in docs.headers["content-security-policy"]
    for path in ("/docs/..%2f..%2f..%2f..%2f..%2fairflow%2fpasswords.json", "/docs/%2e%2e%2f%2e%2e%2fgreat_expectations.yml"):
        assert get(path).status_code == 404
    secret = platform.settings.home / "airflow" / "secrets.json"
    assert secret.exists()
    assert get(f"/docs/{secret}").status_code == 404
