"""The documentation: it builds strictly, needs no network, and its reference knows all of the code."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError

from reviewclf import cli
from reviewclf.settings import Settings, describe_settings, load_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def page(site: Path, name: str) -> str:
    return (site / f"{name}.html").read_text(encoding="utf-8")


def commands(group: typer.core.TyperGroup, name: str) -> Iterator[str]:
    for child in group.commands.values():
        yield f"{name} {child.name}"
        if isinstance(child, typer.core.TyperGroup):
            yield from commands(child, f"{name} {child.name}")


def test_reference_holds_every_setting_with_a_meaning(site: Path) -> None:
    text = page(site, "reference/settings")
    assert [variable for variable, _, meaning in describe_settings() if f">{variable}<" not in text or not meaning] == []


def test_reference_holds_every_command(site: Path) -> None:
    text = page(site, "reference/command-line")
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    assert [command for command in commands(group, "reviewclf") if f"<code>{command}</code>" not in text] == []


def test_reference_holds_every_address_and_metric_of_serving(site: Path) -> None:
    text = page(site, "reference/http")
    for name in ("POST /predict", "GET /model", "GET /health/ready", "GET /metrics", "reviewclf_requests"):
        assert f">{name}<" in text


def test_name_in_mlflow_that_nobody_has_described_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: Any = load_config(str(ROOT / "mkdocs.yml")).hooks["docs/hooks.py"]
    assert "gold/weighted_f1" in hooks.names_in_code()
    monkeypatch.setattr(hooks, "names_in_code", lambda: ["gold/weighted_f1", "latency/novelty"])
    with pytest.raises(PluginError, match="latency/novelty"):
        hooks.mlflow_page()


def test_pages_load_nothing_from_the_internet(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|link|iframe)[^>]* (?:src|href)=\"?(https?://[^\"> ]+)")
    assert {address for file in site.rglob("*.html") for address in loaded.findall(file.read_text(encoding="utf-8"))} == set()


def examples() -> list[tuple[str, str]]:
    """Page and text of each example in Python."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    blocks = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.stem, code) for page in pages for code in blocks.findall(page.read_text(encoding="utf-8"))]


def test_guides_show_the_examples_that_the_tests_use(site: Path) -> None:
    for guide, name in (("candidate", "NaiveBayesCandidate"), ("annotator", "BrandAnnotator")):
        assert name in page(site, f"contributing/{guide}")
        assert "--8" not in page(site, f"contributing/{guide}")


def test_what_examples_import_exists() -> None:
    for page, code in examples():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("reviewclf"):
                names = {alias.name for alias in node.names} - {"words"}  # the stage that the guide adds
                module = importlib.import_module(str(node.module))
                assert [name for name in names if not hasattr(module, name)] == [], page


def test_the_guide_s_stage_runs_once(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"Settings": Settings}
    for page, code in examples():
        if page == "stage":
            exec(compile(code, page, "exec", dont_inherit=True), namespace)  # noqa: S102 - our own page
    settings = load_settings(_env_file=None, home=tmp_path)
    first = namespace["count_words"](settings)
    assert first.counts == {"reviews": 0, "words": 0}
    assert namespace["count_words"](settings) == first


def test_readme_is_a_door_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 8 * 1024
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    # The pages of the reference are only there once the site is built.
    assert [link for link in links if not (ROOT / link).exists() and not link.startswith("docs/reference/")] == []
