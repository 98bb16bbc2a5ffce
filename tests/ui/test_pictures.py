"""The pictures of the documentation, taken anew by `make pictures`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, expect

from reviewclf.registry.tracking import Tracker
from tests.conftest import ROOT
from tests.ui.conftest import Platform, Visitor
from tests.ui.test_promotion_page import open_in_airflow

PICTURES = ROOT / "docs" / "pictures"

pytestmark = pytest.mark.pictures


def test_promotion_page(visit: Callable[..., Visitor]) -> None:
    page = visit().page
    frame = open_in_airflow(page)
    expect(frame.locator(".metrics tbody tr").first).to_be_visible()
    page.screenshot(path=PICTURES / "promotion-page.png")


def test_retrain_in_mlflow(platform: Platform, browser: Browser) -> None:
    tracker = Tracker(platform.mlflow)
    (newest, *_) = tracker.find_runs({"reviewclf.kind": "retrain"})
    page = browser.new_page(viewport={"width": 1360, "height": 940}, locale="en-US")
    address = f"{platform.mlflow}/#/experiments/{tracker.experiment_id}/runs/{newest.info.run_id}"
    page.goto(address)
    # MLflow begins with its side for language models, and with an assistant beside the page.
    page.get_by_text("Model training", exact=True).click()
    page.goto(address)
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.get_by_role("link", name="logreg").first).to_be_visible()
    page.screenshot(path=PICTURES / "mlflow-retrain.png")
