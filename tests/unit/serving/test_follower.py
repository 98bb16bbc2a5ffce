"""Following the alias: swaps after a trial, refusals, back-off, a registry that is away."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reviewclf.errors import RegistryError
from reviewclf.registry.deployment import Version
from reviewclf.serving.cache import ModelCache
from reviewclf.serving.follower import Follower
from reviewclf.serving.metrics import Metrics
from reviewclf.settings import ServingSettings
from tests.small_models import REVIEWS, Folders, answers_of, save_small


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [save_small(tmp_path_factory.mktemp(f"m{shift}"), shift=shift) for shift in range(3)]


@pytest.fixture
def registry(models: list[Path]) -> Folders:
    folders = Folders()
    folders.folders = {str(number): path for number, path in enumerate(models, 1)}
    return folders


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def make(tmp_path: Path, registry: Folders, clock: list[float]) -> Callable[..., Follower]:
    def follower(*, shadow: bool = False) -> Follower:
        settings = ServingSettings(max_batch=4, shadow_share=0.5 if shadow else 0.0)
        return Follower(registry, ModelCache(tmp_path / "cache"), Metrics(), settings, clock=lambda: clock[0])

    return follower


def served(follower: Follower) -> tuple[str, list[str]] | None:
    model = follower.champion
    return (model.version, model.classifier.answers(model.answer(REVIEWS))) if model else None


def figures(follower: Follower) -> str:
    return follower._metrics.render().decode()


def test_without_a_champion_there_is_a_reason(make: Callable[..., Follower]) -> None:
    follower = make()
    follower.look()
    assert follower.champion is None
    assert "alias `champion`" in (follower.problem or "")
    assert follower.reachable is True


def test_promotion_and_rollback_are_followed_and_the_old_version_is_not_fetched_again(
    make: Callable[..., Follower], registry: Folders
) -> None:
    follower = make()
    for number in ("1", "2", "1"):
        registry.named["champion"] = number
        follower.look()
        assert served(follower) == (number, answers_of(int(number) - 1))
    assert registry.fetched == ["1", "2"]
    assert "reviewclf_model_swaps_total 3.0" in figures(follower)
    assert 'reviewclf_model_info{candidate="",gate="",kind="linear",source="registry",version="1"} 1.0' in figures(follower)


def damage_card(folder: Path) -> None:
    (folder / "model.json").write_text("{}", encoding="utf-8")


def later_format(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    (folder / "model.json").write_text(json.dumps({**card, "format": 99}), encoding="utf-8")


def fewer_classes(folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    (folder / "model.json").write_text(json.dumps({**card, "classes": card["classes"][:2]}), encoding="utf-8")


def half_a_file(folder: Path) -> None:
    content = (folder / "model.skops").read_bytes()
    (folder / "model.skops").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (damage_card, "is no description of a saved classifier"),
        (later_format, "format 99, this version reads 1"),
        (fewer_classes, "train"),
        (half_a_file, "damaged"),
        (lambda folder: (folder / "model.skops").unlink(), "cannot be read"),
    ],
)
def test_broken_version_is_refused_and_the_old_one_goes_on(
    make: Callable[..., Follower],
    registry: Folders,
    tmp_path: Path,
    clock: list[float],
    break_it: Callable[[Path], None],
    said: str,
) -> None:
    follower = make()
    registry.named["champion"] = "1"
    follower.look()
    broken = Path(shutil.copytree(registry.folders["2"], tmp_path / "broken"))
    break_it(broken)
    whole, registry.folders["2"] = registry.folders["2"], broken
    registry.named["champion"] = "2"
    follower.look()
    assert served(follower) == ("1", answers_of(0))
    assert follower.refused is not None
    assert (follower.refused.version.version, said in follower.refused.reason) == ("2", True)
    assert 'reviewclf_model_refused_total{alias="champion",version="2"} 1.0' in figures(follower)

    follower.look()
    assert registry.fetched == ["1", "2"], "it is not tried at every look"
    clock[0] = 16
    follower.look()
    assert registry.fetched == ["1", "2", "2"], "after the back-off it is fetched anew"
    clock[0] = 40
    follower.look()
    assert registry.fetched == ["1", "2", "2"], "each back-off is longer"
    registry.folders["2"] = whole
    clock[0] = 60
    follower.look()
    assert served(follower) == ("2", answers_of(1))
    assert follower.refused is None


def test_refusal_ends_when_the_alias_moves(make: Callable[..., Follower], registry: Folders, tmp_path: Path) -> None:
    follower = make()
    registry.named["champion"] = "1"
    follower.look()
    broken = Path(shutil.copytree(registry.folders["2"], tmp_path / "broken"))
    damage_card(broken)
    registry.folders["2"] = broken
    for number in ("2", "3", "2", "1"):
        registry.named["champion"] = number
        follower.look()
    assert registry.fetched == ["1", "2", "3", "2"]
    assert follower.refused is None
    assert follower.problem is None


class Wrong:
    """A classifier whose parts load but whose answers are wrong."""

    classes = ("a", "b")

    def __init__(self, value: float, columns: int = 2) -> None:
        self.value, self.columns = value, columns

    def predict_proba(self, texts: list[str]) -> object:
        import numpy as np

        return np.full((len(texts), self.columns), self.value)

    def answers(self, probabilities: object) -> list[str]:
        return ["a"]


@pytest.mark.parametrize(("value", "columns"), [(float("nan"), 2), (0.7, 2), (0.5, 3), (-1.0, 2)])
def test_answers_that_are_no_probabilities_fail_the_trial(value: float, columns: int) -> None:
    from reviewclf.serving.model import try_out

    with pytest.raises(RegistryError, match="train it anew"):
        try_out(Wrong(value, columns), batch=2)  # type: ignore[arg-type]


def test_registry_away_changes_nothing_and_a_restart_serves_the_last_champion(
    make: Callable[..., Follower], registry: Folders
) -> None:
    follower = make()
    registry.named["champion"] = "2"
    follower.look()
    registry.away = True
    follower.look()
    assert served(follower) == ("2", answers_of(1))
    assert follower.reachable is False
    assert "reviewclf_registry_up 0.0" in figures(follower)

    restarted = make()
    restarted.look()
    assert served(restarted) == ("2", answers_of(1))
    assert restarted.champion is not None
    assert (restarted.champion.loaded_from, restarted.champion.figures) == ("cache", {"gold/weighted_f1": 0.9})

    registry.away = False
    registry.named["champion"] = "3"
    restarted.look()
    assert served(restarted) == ("3", answers_of(2))
    assert restarted.reachable is True


def test_restart_with_a_broken_champion_serves_the_last_good_one(
    make: Callable[..., Follower], registry: Folders, tmp_path: Path
) -> None:
    registry.named["champion"] = "1"
    make().look()
    broken = Path(shutil.copytree(registry.folders["2"], tmp_path / "broken"))
    damage_card(broken)
    registry.folders["2"] = broken
    registry.named["champion"] = "2"
    restarted = make()
    restarted.look()
    assert served(restarted) == ("1", answers_of(0))
    assert restarted.refused is not None


def test_taken_away_alias_leaves_the_last_champion_answering(make: Callable[..., Follower], registry: Folders) -> None:
    follower = make()
    registry.named["champion"] = "1"
    follower.look()
    del registry.named["champion"]
    follower.look()
    assert served(follower) == ("1", answers_of(0))
    assert "alias `champion`" in (follower.problem or "")


def test_tags_are_read_anew_while_a_version_serves(make: Callable[..., Follower], registry: Folders) -> None:
    follower = make()
    registry.named["champion"] = "1"
    follower.look()
    registry.tags["reviewclf.promoted_by"] = "anna"
    follower.look()
    assert follower.champion is not None
    assert follower.champion.info.tags == {"reviewclf.promoted_by": "anna"}


def test_challenger_is_followed_only_for_the_shadow(make: Callable[..., Follower], registry: Folders) -> None:
    registry.named.update(champion="1", challenger="2")
    plain, shadowing = make(), make(shadow=True)
    plain.look()
    shadowing.look()
    assert plain.challenger is None
    assert shadowing.challenger is not None
    assert shadowing.challenger.version == "2"
    registry.named.update(champion="2")
    del registry.named["challenger"]
    shadowing.look()
    assert shadowing.challenger is None
    assert served(shadowing) == ("2", answers_of(1))


def test_disk_keeps_the_champion_and_the_one_before(make: Callable[..., Follower], registry: Folders, tmp_path: Path) -> None:
    follower = make()
    for number in ("1", "2", "3"):
        registry.named["champion"] = number
        follower.look()
    assert sorted(path.name[0] for path in (tmp_path / "cache" / "models").iterdir()) == ["2", "3"]


def test_those_who_see_a_version_at_the_same_moment_fetch_it_once(registry: Folders, tmp_path: Path) -> None:
    def fetch(version: Version, folder: Path) -> None:
        time.sleep(0.2)
        registry.fetch(version, folder)

    def get(_: int) -> Path:
        return ModelCache(tmp_path / "cache").get(registry.version("1"), fetch)

    with ThreadPoolExecutor(4) as pool:
        (path,) = set(pool.map(get, range(4)))
    assert (registry.fetched, (path / "model.json").is_file()) == (["1"], True)


@contextlib.contextmanager
def no_more_open_files() -> Iterator[None]:
    """As in a process that has used up its files: what is open stays open, and nothing more can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("away", [False, True])
def test_too_many_open_files_do_not_cost_the_last_copy_of_the_champion(
    make: Callable[..., Follower], registry: Folders, clock: list[float], away: bool
) -> None:
    registry.named["champion"] = "2"
    make().look()
    restarted = make()
    registry.away = away
    with no_more_open_files():
        restarted.look()
    assert served(restarted) is None
    # The registry goes away now at the latest: only what lies on this disk is left.
    registry.away = True
    clock[0] = 30
    restarted.look()
    assert served(restarted) == ("2", answers_of(1))
    assert registry.fetched == ["2"]


def test_damaged_copy_stays_until_a_whole_one_has_arrived(
    make: Callable[..., Follower], registry: Folders, clock: list[float], tmp_path: Path
) -> None:
    registry.named["champion"] = "2"
    make().look()
    (copy,) = (tmp_path / "cache" / "models").iterdir()
    half_a_file(copy)
    restarted = make()
    restarted.look()
    assert served(restarted) is None
    whole, registry.folders["2"] = registry.folders["2"], tmp_path / "gone"
    clock[0] = 20
    restarted.look()
    assert (copy / "model.skops").exists()
    registry.folders["2"] = whole
    clock[0] = 100
    restarted.look()
    assert served(restarted) == ("2", answers_of(1))
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
