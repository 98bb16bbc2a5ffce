"""An annotator of an installed package votes as ours do: named by a setting, without a change to this package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reviewclf.errors import LabelingError, SettingsError
from reviewclf.labeling.annotators import make_annotators
from reviewclf.settings import load_settings
from reviewclf.stages import label as label_stages
from reviewclf.store import Store
from reviewclf.taxonomy import Taxonomy
from tests.integration.test_stages import run_ingest, write_reviews

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as pip leaves it: the module, and beside it what is known of its package."""
    folder = tmp_path / "site-packages"
    metadata = folder / "brand_annotator-1.0.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "examples" / "brand_annotator.py", folder)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: brand-annotator\nVersion: 1.0\n")
    points = ["[reviewclf.annotators]", "brands = brand_annotator:from_settings", "broken = brand_annotator:nothing"]
    (metadata / "entry_points.txt").write_text("\n".join([*points, "recorded = brand_annotator:from_settings", ""]))
    return folder


def test_annotator_of_an_installed_package_labels_reviews(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setenv("REVIEWCLF_LLM__BACKEND", "brands")
    texts = ["Ecco как всегда на высоте, ношу с радостью", "Luminarc разбился в первый же день", "Хлопок мягкий, платье село"]
    source = write_reviews(tmp_path / "reviews.csv", [(str(i), text) for i, text in enumerate(texts)])
    settings = load_settings(_env_file=None, home=tmp_path / "home", source=source, gold=None)
    run_ingest(settings)
    selected = label_stages.select(settings)
    annotated = [label_stages.annotate(settings, selected, {"shard": 0, "shards": 1})]
    labelled = label_stages.aggregate(settings, selected, annotated)
    # Stems know a dress, and nothing of brands.
    assert labelled.details["labels_by_class"] == {"обувь": 1, "посуда": 1, "одежда": 1}
    votes = Store(settings.store_uri).read(annotated[0], "votes").to_pylist()
    assert sum(vote["annotator"] == "brands@1" for vote in votes) == len(texts)
    assert label_stages.select(settings).counts["pending"] == 0


def test_other_processes_find_it_too(installed: Path) -> None:
    code = "from reviewclf.labeling import run_llm; print(*run_llm(['Наушники JBL хрипят', 'ок'])['label'])"
    path = os.pathsep.join([str(installed), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "REVIEWCLF_LLM__BACKEND": "brands"}
    answered = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert sorted(answered.stdout.split()) == ["nan", "электроника"]


def test_name_that_nobody_registers_is_refused_with_those_that_are(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(SettingsError, match=r"LLM__BACKEND='brand'.*brands, broken, openai, recorded, transformers"):
        load_settings(_env_file=None, llm={"backend": "brand"})


def test_entry_point_that_cannot_be_imported_names_the_setting(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    settings = load_settings(_env_file=None, llm={"backend": "broken"})
    with pytest.raises(LabelingError, match=r"LLM__BACKEND: brand_annotator:nothing, registered as broken, cannot"):
        make_annotators(settings, Taxonomy.load(settings.taxonomy))


def test_nobody_replaces_an_annotator_of_ours(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    settings = load_settings(_env_file=None)
    voter, _ = make_annotators(settings, Taxonomy.load(settings.taxonomy))
    assert type(voter).__module__ == "reviewclf.labeling.annotators.recorded"
