"""Scikit-learn objects in files that are read without running code: skops, and only types that were named beforehand."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from reviewclf.errors import RegistryError
from reviewclf.training.parts import reading


def write_skops(content: dict[str, Any], path: Path) -> None:
    """Write arrays, scikit-learn objects and what Python has of containers."""
    _skops().dump(content, path, compression=zipfile.ZIP_DEFLATED)


def read_skops(path: Path, *, trusted: Collection[str] = ()) -> dict[str, Any]:
    """Read what :func:`write_skops` wrote.

    Parameters
    ----------
    trusted : collection of str
        Full names of the types that the file may hold beyond what skops trusts by itself.

    Raises
    ------
    RegistryError
        The file is missing or damaged, or holds any other type.
    """
    skops = _skops()
    with reading(path):
        foreign = sorted(set(skops.get_untrusted_types(file=path)) - set(trusted))
        content = None if foreign else skops.load(path, trusted=sorted(trusted))
    if foreign:
        raise RegistryError(
            f"{path}: holds {', '.join(foreign)}, which no saved classifier does; tampered with, so it is not loaded"
        )
    if not isinstance(content, dict):
        raise RegistryError(f"{path}: holds a {type(content).__name__} in place of a classifier's parts; train it anew")
    return content


def _skops() -> Any:
    """The module ``skops.io``.

    At its import it asks every loaded module for each function of scipy. Inside Airflow many answer with a warning, a line of
    the log each: thousands, and many seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import skops.io
    return skops.io
