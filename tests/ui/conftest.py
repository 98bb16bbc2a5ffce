"""A running Airflow and MLflow over a registry with a champion, a challenger and a previous version, and a real browser."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from reviewclf.local import mlflow
from reviewclf.local.airflow import (
    PASSWORDS_FILE,
    AirflowApi,
    airflow_command,
    airflow_environment,
    child_environment,
    load_keys,
)
from reviewclf.local.processes import Processes, free_port
from reviewclf.settings import Settings, load_settings
from reviewclf.stages import ingest as ingest_stages
from reviewclf.stages import label as label_stages
from reviewclf.stages import train as train_stages
from tests.services import missing

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180
# A busy machine of two cores runs all of it, browser included.
expect.set_options(timeout=60_000)
USERS = {"admin": "admin", "viktor": "viewer"}


@dataclass
class Platform:
    """What runs: addresses, passwords by user, and the settings under which the registry was filled."""

    airflow: str
    mlflow: str
    passwords: dict[str, str]
    settings: Settings
    api: AirflowApi
    start: Callable[[str], None]

    def aliases(self) -> dict[str, str]:
        """Version by alias, asked of MLflow itself."""
        answer = httpx.get(
            f"{self.mlflow}/api/2.0/mlflow/registered-models/get", params={"name": "review-classifier"}, trust_env=False
        )
        return {item["alias"]: item["version"] for item in answer.raise_for_status().json()["registered_model"]["aliases"]}

    def version(self, number: str) -> dict[str, Any]:
        """A version as MLflow shows it, its tags as a mapping."""
        answer = httpx.get(
            f"{self.mlflow}/api/2.0/mlflow/model-versions/get",
            params={"name": "review-classifier", "version": number},
            trust_env=False,
        )
        found: dict[str, Any] = answer.raise_for_status().json()["model_version"]
        return {**found, "tags": {tag["key"]: tag["value"] for tag in found["tags"]}}


def _fill(home: Path) -> Settings:
    """Three retrains on growing data: previous and champion are `logreg`, the challenger is `linear-svc`."""
    lines = Path(str(resources.files("reviewclf").joinpath("sample/reviews.csv"))).read_text(encoding="utf-8").splitlines(True)
    source, candidates = home / "reviews.csv", home / "candidates.yaml"
    known = yaml.safe_load(Path(str(resources.files("reviewclf").joinpath("candidates.yaml"))).read_text(encoding="utf-8"))
    settings = load_settings(
        _env_file=None,
        home=home,
        source=str(source),
        candidates=candidates,
        augmentation={"backend": "none"},
        dataset={"label_errors": "off"},
    )
    for night, (rows, names, promoted) in enumerate(
        [(200, ["logreg"], True), (320, ["logreg"], True), (len(lines), ["logreg", "linear-svc"], False)]
    ):
        source.write_text("".join(lines[: rows + 1]), encoding="utf-8")
        chosen = [candidate for candidate in known["candidates"] if candidate["name"] in names]
        candidates.write_text(yaml.safe_dump({"candidates": chosen}, allow_unicode=True), encoding="utf-8")
        _night(settings, promoted=promoted, run=f"airflow run scheduled__{night}")
    return settings


def _night(settings: Settings, *, promoted: bool, run: str) -> None:
    ingested = ingest_stages.ingest(settings)
    validated = ingest_stages.validate_raw(settings, ingested)
    cleaned = ingest_stages.clean(settings, ingested, validated)
    ingest_stages.publish(settings, ingested, validated, cleaned, ingest_stages.validate_clean(settings, cleaned))
    selected = label_stages.select(settings)
    shards: Any = selected.details["shards"]
    label_stages.aggregate(settings, selected, [label_stages.annotate(settings, selected, shard) for shard in shards])
    dataset = train_stages.build_dataset(settings)
    trained = [train_stages.train(settings, dataset, name) for name in train_stages.candidate_names(settings)]
    gated = train_stages.gate(settings, train_stages.evaluate(settings, dataset, trained))
    if promoted:
        train_stages.promote(settings, gated, who=run)


@pytest.fixture(scope="package")
def chromium() -> str:
    """The browser's program."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        missing("Chromium", "apt-get install chromium, or set CHROMIUM to its program")
    return found


@pytest.fixture(scope="package")
def platform(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Platform]:
    """Airflow's API server and MLflow; the registry is filled while they start."""
    home = tmp_path_factory.mktemp("ui")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("REVIEWCLF_", "MLFLOW_", "AIRFLOW_"))]:
            patch.delenv(name)
        ports = [free_port(18_080)]
        ports.append(free_port(15_000, avoid=ports))
        address = f"http://127.0.0.1:{ports[1]}"
        airflow_home = home / "airflow"
        keys, _ = load_keys(airflow_home)
        passwords = dict.fromkeys(USERS, keys["password"])
        (airflow_home / PASSWORDS_FILE).write_text(json.dumps(passwords))
        env = child_environment(home=home, tracking_uri=address)
        env |= airflow_environment(home=airflow_home, dags=ROOT / "dags", plugins=ROOT / "plugins", port=ports[0], keys=keys)
        env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = ",".join(f"{name}:{role}" for name, role in USERS.items())
        env["HF_HUB_OFFLINE"] = "1"
        # The DAGs find the whole sample, and a store that the registry was not filled from.
        env["REVIEWCLF_STORE"] = str(home / "store of the dags")
        processes = Processes(home=home, logs=home / "logs")

        def start(component: str) -> None:
            arguments = ["--skip-serve-logs"] if component == "scheduler" else []
            processes.start(component, airflow_command(component, *arguments), env=env)

        try:
            with ThreadPoolExecutor(1) as pool:
                filled = pool.submit(_fill, home)
                migration = processes.start("db-migrate", airflow_command("db", "migrate"), env=env)
                assert processes.finish(migration, timeout=START_SECONDS) == 0, (home / "logs" / "db-migrate.log").read_text()
                start("api-server")
                settings = filled.result()
            # One writer at a time: the server opens the file that the retrains have filled.
            processes.start("mlflow", mlflow.server_command(home / "mlflow", port=ports[1]), env=mlflow.server_environment(env))
            here = f"http://127.0.0.1:{ports[0]}"
            _wait(f"{address}/health", processes)
            _wait(f"{here}/api/v2/version", processes)
            yield Platform(here, address, passwords, settings, AirflowApi(here, password=keys["password"]), start)
        finally:
            processes.stop()


def _wait(address: str, processes: Processes) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        processes.check()
        try:
            if httpx.get(address, trust_env=False, timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    pytest.fail(f"{address} does not answer in {START_SECONDS} s")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Chromium without a window. Its driver holds the event loop of the thread that the tests run in until it stops."""
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """Somebody with a browser of their own, and what its console complained of."""

    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Browser, platform: Platform) -> Iterator[Callable[..., Visitor]]:
    """Log somebody in to Airflow through its form, with a viewport, a theme and a language; complaints fail the test."""
    visitors: list[Visitor] = []

    def enter(user: str = "admin", *, width: int = 1280, theme: str = "light", language: str = "en-US") -> Visitor:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, locale=language, base_url=platform.airflow
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        visitor = Visitor(context, page)
        visitors.append(visitor)
        page.goto("/auth/login")
        page.get_by_label("Username").fill(user)
        page.get_by_label("Password").fill(platform.passwords[user])
        page.locator("button[type=submit]").click()
        page.wait_for_url(lambda address: "/auth/login" not in address)
        # From here on: what Airflow's own login page says is not ours.
        page.on("console", lambda said: visitor.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
        return visitor

    yield enter
    for visitor in visitors:
        visitor.context.close()
    assert [said for visitor in visitors for said in visitor.complaints] == []
