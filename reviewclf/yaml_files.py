"""YAML files that people write: read by a pydantic model, with messages that name file and field."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from reviewclf.errors import ReviewclfError

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: str | Path, kind: type[Model], *, setting: str, error_type: type[ReviewclfError]) -> Model:
    """Read a UTF-8 YAML file.

    Parameters
    ----------
    kind : type
        What the file holds.
    setting : str
        The variable that names the file, for messages.
    error_type : type of ReviewclfError
        Raised where the file is missing, is no YAML or breaks its contract.
    """
    try:
        return kind.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise error_type(f"{path}: cannot be read ({error.strerror}); check {setting}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise error_type(f"{path}: is no UTF-8 YAML file: {error}") from error
    except ValidationError as error:
        raise error_type(f"{path}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """What a model refused: each field, what is wrong with it, and what was found there."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']} (found {item.get('input')!r:.80})"
        for item in error.errors()
    )
