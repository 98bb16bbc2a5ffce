"""Prompt files: one YAML file a prompt, versioned, checked when it is read."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field

from reviewclf.errors import ReviewclfError
from reviewclf.yaml_files import read_yaml


class PromptFile(BaseModel, frozen=True, extra="forbid"):
    """What every prompt file holds: a name, which state of it, and the two messages."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]
    version: Annotated[int, Field(ge=1)]
    system: str
    user: str


AnyPrompt = TypeVar("AnyPrompt", bound=PromptFile)


def read_prompts(
    kind: type[AnyPrompt], folder: Path | None, *, bundled: str, setting: str, error_type: type[ReviewclfError]
) -> list[AnyPrompt]:
    """Read every ``*.yaml`` of a folder, sorted by name.

    Parameters
    ----------
    kind : type
        What the files hold.
    folder : Path or None
        None: the folder `bundled` of the package.
    setting : str
        The variable that names the folder, for messages.
    error_type : type of ReviewclfError
        Raised where there is no prompt, two share an id, or one breaks its contract; the message names file and field.
    """
    root = Path(str(resources.files("reviewclf").joinpath(bundled))) if folder is None else Path(folder)
    prompts: dict[str, AnyPrompt] = {}
    for path in sorted(root.glob("*.yaml")):
        prompt = read_yaml(path, kind, setting=setting, error_type=error_type)
        if prompt.id in prompts:
            raise error_type(f"{path}: id: another prompt is called {prompt.id!r} already")
        prompts[prompt.id] = prompt
    if not prompts:
        raise error_type(f"{root}: no prompt (*.yaml) here; check {setting}")
    return list(prompts.values())
