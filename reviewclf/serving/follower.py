"""Follows the alias `champion`: looks at the registry, loads and tries out what it names, and only then lets it answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from reviewclf.errors import RegistryError
from reviewclf.outages import is_short
from reviewclf.registry import CHALLENGER, CHAMPION
from reviewclf.registry.deployment import Deployments, Version
from reviewclf.serving.cache import Known, ModelCache
from reviewclf.serving.metrics import Metrics
from reviewclf.serving.model import ServedModel, load, threads_of
from reviewclf.settings import ServingSettings

logger = logging.getLogger(__name__)

# A version that could not be used is tried again after this many seconds, then after twice as many, and so on.
_FIRST_RETRY = 15.0
_LAST_RETRY = 600.0


@dataclass(frozen=True)
class Refusal:
    """A version that an alias names but that is not served; `retry_at` is monotonic seconds."""

    version: Version
    reason: str
    at: datetime
    attempts: int
    retry_at: float


class Follower:
    """The models that answer, kept in step with the registry by a thread of its own.

    Parameters
    ----------
    registry : Deployments
        Looked at every few seconds.
    cache : ModelCache
        Where versions are fetched to, and where the last champion is found while the registry is away.
    metrics : Metrics
        Told about swaps, refusals and the registry's state.
    settings : ServingSettings
        How often it looks, how models are run, and whether `challenger` is followed as well.
    clock : callable
        Monotonic seconds.

    Attributes
    ----------
    champion, challenger : ServedModel or None
        What answers, and what is compared with it. Replaced as a whole, so that readers in other threads see one or the other.
    refused : Refusal or None
        The version that `champion` names, when another one is served or none.
    reachable : bool or None
        Whether the last look found the registry; None before the first.
    last_contact : datetime or None
        When one last did.
    problem : str or None
        Why there is no champion, or why the registry could not be read.
    """

    def __init__(
        self,
        registry: Deployments,
        cache: ModelCache,
        metrics: Metrics,
        settings: ServingSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._metrics = metrics
        self._settings = settings
        self._clock = clock
        self._stop = threading.Event()
        self._has_looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._refusals: dict[str, Refusal] = {}
        # Identities of versions whose copy on this disk did not load.
        self._doubtful: set[str] = set()
        self.champion: ServedModel | None = None
        self.challenger: ServedModel | None = None
        self.reachable: bool | None = None
        self.last_contact: datetime | None = None
        self.problem: str | None = "the registry has not been read yet"

    @property
    def refused(self) -> Refusal | None:
        """See the class."""
        return self._refusals.get(CHAMPION)

    def start(self, seconds: float = 0.0) -> None:
        """Begin to look; waits for the first look to end at most `seconds`."""
        self._thread.start()
        self._has_looked.wait(seconds)

    def stop(self, seconds: float = 2.0) -> None:
        """Look no more; waits for a look in progress at most `seconds`. Who waits for the first look waits no longer."""
        self._stop.set()
        self._has_looked.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def seconds_to_retry(self) -> float:
        """Until the refused version is tried again; 0 when none is."""
        return max(0.0, self.refused.retry_at - self._clock()) if self.refused else 0.0

    def look(self) -> None:
        """Look once, and load what has changed. Never raises: a server goes on with what it has."""
        try:
            aliases = self._registry.aliases()
            before = self.champion, self.challenger
            self._follow_champion(aliases.get(CHAMPION))
            if self._settings.shadow_share > 0:
                self._follow_challenger(aliases.get(CHALLENGER))
            self._prune(*before)
            if self.reachable is False:
                logger.info("the registry answers again")
            self.reachable, self.last_contact = True, datetime.now(UTC)
        except Exception as error:  # a bug here must not end the thread either: then no promotion would ever arrive
            if not isinstance(error, RegistryError):
                logger.exception("following the registry failed")
            elif self.reachable is not False:
                logger.warning("the registry cannot be read, the last champion goes on: %s", error)
            self.reachable = False
            self.problem = str(error) if isinstance(error, RegistryError) else f"following the registry failed: {error!r:.300}"
            self._serve_last_known()
        self._metrics.looked(reachable=bool(self.reachable), contact=self.last_contact)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._has_looked.set()
            self._stop.wait(self._settings.poll_seconds)

    def _follow_champion(self, number: str | None) -> None:
        current = self.champion
        if number is None:
            self._refusals.pop(CHAMPION, None)
            problem = "no version carries the alias `champion`: run a retrain that passes the gate first (`make run`)"
            if self.problem != problem:
                logger.warning("%s%s", problem, f"; version {current.version} goes on" if current else "")
            self.problem = problem
            return
        info = self._registry.version(number)
        if current is not None and current.info.identity == info.identity:
            self._refusals.pop(CHAMPION, None)
            self.problem = None
            if current.info != info:  # tags and description change while it serves
                self.champion = replace(current, info=info)
            return
        model = self._try_load(CHAMPION, info)
        if model is None:
            if self.champion is None:
                self._serve_last_known()
            return
        self._swap(model)

    def _follow_challenger(self, number: str | None) -> None:
        champion, current = self.champion, self.challenger
        if number is None or (champion is not None and champion.version == number):
            self.challenger = None
            self._refusals.pop(CHALLENGER, None)
            return
        info = self._registry.version(number)
        if current is not None and current.info.identity == info.identity:
            return
        model = self._try_load(CHALLENGER, info)
        # An old challenger's answers would say nothing about the one that the alias names now.
        self.challenger = model
        if model is not None:
            logger.info("version %s answers in the shadow of the champion", model.version)

    def _try_load(self, alias: str, info: Version) -> ServedModel | None:
        """The model, or None while it is refused."""
        known = self._refusals.get(alias)
        if known is not None and known.version.identity != info.identity:
            known = None
        if known is not None and self._clock() < known.retry_at:
            return None
        try:
            model = self._load(info)
        except RegistryError as error:
            attempts = known.attempts + 1 if known else 1
            wait = min(_LAST_RETRY, _FIRST_RETRY * 2 ** (attempts - 1))
            reason = str(error)
            self._refusals[alias] = Refusal(info, reason, datetime.now(UTC), attempts, self._clock() + wait)
            self._metrics.refused(alias, info.version)
            goes_on = f"version {self.champion.version} goes on" if self.champion else "there is no other"
            logger.error(  # noqa: TRY400 - said in words
                "%s: version %s is refused, %s; next attempt in %.0f s or when the alias moves: %s",
                *(alias, info.version, goes_on, wait, reason),
            )
            if alias == CHAMPION:
                self.problem = f"version {info.version} is refused: {reason}"
            return None
        self._refusals.pop(alias, None)
        return model

    def _load(self, info: Version, *, source: str = "registry", figures: dict[str, float] | None = None) -> ServedModel:
        started = self._clock()
        # The only copy there is must outlive an error: it is replaced when another one is here, and never just removed.
        anew = source == "registry" and info.identity in self._doubtful
        try:
            folder = self._cache.get(info, self._registry.fetch, anew=anew)
            classifier, kind = load(folder, threads=threads_of(self._settings), batch=self._settings.max_batch)
        except Exception as error:
            if not is_short(error):
                # What was fetched may have been damaged on this disk.
                self._doubtful.add(info.identity)
            if isinstance(error, RegistryError):
                raise
            hint = "it is tried again" if is_short(error) else "train it anew"
            raise RegistryError(f"it cannot be loaded: {error!r:.300}; {hint}") from error
        self._doubtful.discard(info.identity)
        figures = self._registry.figures(info) if figures is None else figures
        logger.info("version %s loaded and warmed up in %.1f s", info.version, self._clock() - started)
        return ServedModel(info, classifier, figures, datetime.now(UTC), source, kind)

    def _swap(self, model: ServedModel) -> None:
        old = self.champion
        self.champion = model
        self.problem = None
        self._metrics.swapped(model)
        logger.info("version %s answers now%s", model.version, f", in place of version {old.version}" if old else "")
        self._cache.remember_champion(Known(info=model.info, figures=model.figures))

    def _prune(self, champion: ServedModel | None, challenger: ServedModel | None) -> None:
        """Remove from the disk what neither answers nor did before this look; only when both aliases have been followed.

        The other processes of the server may be fetching the same challenger at this moment.
        """
        if (self.champion, self.challenger) != (champion, challenger):
            # The champion before stays on disk: a rollback goes there.
            self._cache.prune([model.info for model in (self.champion, self.challenger, champion) if model is not None])

    def _serve_last_known(self) -> None:
        """Before the first champion came from the registry: the one of the last run, if its files are still here."""
        if self.champion is not None:
            return
        known = self._cache.last_champion()
        refused = self.refused
        if known is None:
            return
        if refused is not None and refused.version.identity == known.info.identity and self._clock() < refused.retry_at:
            return
        try:
            model = self._load(known.info, source="cache", figures=known.figures)
        except RegistryError as error:
            logger.error("the champion of the last run cannot be used either: %s", error)  # noqa: TRY400 - said in words
            return
        self.champion = model
        self._metrics.swapped(model)
        logger.warning("version %s, the champion of the last run, answers from this disk", model.version)
