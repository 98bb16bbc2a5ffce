"""A kind of candidates from a user's own package goes the whole way: trained, scored, judged, served; nothing is forked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml

from reviewclf.errors import RegistryError, TrainingError
from reviewclf.registry.model import load_model
from reviewclf.registry.tracking import Tracker
from reviewclf.settings import load_settings
from reviewclf.stages import train as stages
from reviewclf.training.candidates import load_candidates
from reviewclf.training.model import load_model as load_classifier
from tests.conftest import ROOT

EXAMPLE = ROOT / "tests" / "examples" / "naive_bayes"
OWN = {"name": "own", "kind": "naive-bayes", "params": {"alpha": 0.3}}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages that has the example's, as pip would put it there."""
    folder = tmp_path / "site"
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    metadata = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(EXAMPLE / "naive_bayes.py", folder)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in points.items()) for group, points in groups]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("naive_bayes", None)


def _file(folder: Path, *candidates: object) -> Path:
    path = folder / "candidates.yaml"
    path.write_text(yaml.safe_dump({"candidates": list(candidates)}), encoding="utf-8")
    return path


def test_example_is_short_enough_to_follow() -> None:
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLE.iterdir() if path.is_file()) < 60


def test_own_candidate_is_trained_scored_judged_and_served_like_ours(
    site: Path, tmp_path: Path, labelled_sample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(labelled_sample, tmp_path / "home" / "store")
    quick = yaml.safe_load((ROOT / "tests" / "candidates-quick.yaml").read_text(encoding="utf-8"))["candidates"]
    settings = load_settings(_env_file=None, home=tmp_path / "home", candidates=_file(tmp_path, *quick, OWN))
    dataset = stages.build_dataset(settings)
    assert stages.candidate_names(settings, encoders=False) == ["logreg", "own"]
    trained = [stages.train(settings, dataset, name) for name in stages.candidate_names(settings)]
    gated = stages.gate(settings, stages.evaluate(settings, dataset, trained))
    assert set(gated.details["verdicts"]) == {"logreg", "own"}  # type: ignore[arg-type]

    tracker = Tracker(settings.tracking_uri)
    uri = str(trained[1].details["model_uri"])
    figures = tracker.client.get_run(str(trained[1].details["run_id"])).data.metrics
    assert figures["gold/weighted_f1"] > 0.5
    assert figures["validation/weighted_f1"] > 0.5
    logged = Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=settings.tracking_uri))
    assert "reviewclf-naive-bayes==1.0" in (logged / "requirements.txt").read_text(encoding="utf-8")
    model = load_model(tracker, uri, version="1")
    assert model.predict(["платье село отлично"])["confidence"].between(0, 1).all()

    # Another process, as the server is one: the registered kind is found by the package's metadata.
    (folder,) = (logged / "artifacts").iterdir()
    assert {path.name for path in folder.iterdir()} == {"model.json", "pipeline.skops"}
    script = "import sys\nfrom reviewclf.training.model import load_model\nprint(load_model(sys.argv[1]).predict(['юбка'])[0])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    said = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == load_classifier(folder).predict(["юбка"])[0]

    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site)])
    with pytest.raises(RegistryError, match=r"model\.json: kind: expected one of linear, .*found 'naive-bayes'; install"):
        load_classifier(folder)


def test_mistakes_name_file_candidate_and_kinds(site: Path, tmp_path: Path) -> None:
    known = "linear, encoder, frozen-encoder, naive-bayes"
    with pytest.raises(
        TrainingError, match=rf"candidates\.yaml: candidate 1 \(own\): kind: expected one of {known}, found 'bayes'"
    ):
        load_candidates(_file(tmp_path, {**OWN, "kind": "bayes"}))
    with pytest.raises(TrainingError, match=r"candidate 1 \(own\): params\.alpha: .*valid number"):
        load_candidates(_file(tmp_path, {**OWN, "params": {"alpha": "x"}}))
    (site / "naive_bayes.py").write_text("import no_such_module")
    del sys.modules["naive_bayes"]
    with pytest.raises(
        TrainingError, match=r"candidate 1 \(own\): kind: naive_bayes:NaiveBayesCandidate, registered as naive-bayes"
    ):
        load_candidates(_file(tmp_path, OWN))
