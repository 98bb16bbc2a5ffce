"""What a language model is asked: versioned prompt files filled with the taxonomy, and reviews made safe to put into them.

Pure but for reading the files once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, field_validator

from reviewclf.errors import LabelingError
from reviewclf.labeling.injection import MASKED, hide_orders
from reviewclf.llm.prompts import PromptFile, read_prompts
from reviewclf.llm.replies import storable
from reviewclf.manifest import digest_of
from reviewclf.taxonomy import Taxonomy
from reviewclf.text import redact, repaired

# One character each, so that a category is one token of the answer in every tokenizer that is met in practice.
_CODES = "123456789ABCDEFGHJKLMNPQRSTUVWXYZ"

# Texts without content: what a model answers to them is its prior towards categories, not knowledge.
CONTENT_FREE = ("[отзыв]", "…", "N/A")


class Prompt(PromptFile):
    """One phrasing of the question; a YAML file.

    Attributes
    ----------
    id, version : str, int
        Name of the prompt, and which state of it.
    order : {"taxonomy", "reversed", "shuffled"}
        In which order categories are listed at the first draw; later draws shuffle them, each its own way.
    system, user : str
        The messages. In the first ``{categories}`` (with descriptions) or ``{names}``, in the second ``{text}`` is filled in.
    """

    order: Literal["taxonomy", "reversed", "shuffled"] = "taxonomy"

    @field_validator("system")
    @classmethod
    def _lists_categories(cls, value: str) -> str:
        if value.count("{categories}") + value.count("{names}") != 1:
            raise ValueError("must hold {categories} or {names}, exactly once")
        return value

    @field_validator("user")
    @classmethod
    def _shows_text(cls, value: str) -> str:
        if value.count("{text}") != 1:
            raise ValueError("must hold {text} exactly once")
        return value

    def fill(self, taxonomy: Taxonomy, draw: int = 0) -> Question:
        """The question about one taxonomy; `draw` 1, 2, ... lists the categories in other orders."""
        categories = list(taxonomy.categories)
        if len(categories) > len(_CODES):
            most = f"a language model can be asked about {len(_CODES)} categories at most"
            raise LabelingError(f"{most}, found {len(categories)}")
        if draw > 0 or self.order == "shuffled":
            random.Random(f"{self.id}:{draw}").shuffle(categories)  # noqa: S311 - an order, not a secret
        elif self.order == "reversed":
            categories.reverse()
        coded = dict(zip(_CODES, categories, strict=False))
        described = "\n".join(f"{code}. {category.name}: {category.description}" for code, category in coded.items())
        named = "\n".join(f"{code}. {category.name}" for code, category in coded.items())
        before, after = self.user.strip().split("{text}")
        asked = [self.model_dump(), [[category.name, category.description] for category in taxonomy.categories]]
        return Question(
            name=f"{self.id}@{self.version}+{digest_of(asked)[:8]}",
            draw=draw,
            labels={code: category.name for code, category in coded.items()},
            system=self.system.strip().replace("{categories}", described).replace("{names}", named),
            before=before,
            after=after,
        )


class Question(BaseModel, frozen=True):
    """A prompt filled with categories; only the review is missing.

    Attributes
    ----------
    name : str
        ``id@version+digest``. The digest covers every word that is asked, and the taxonomy, so that nothing changes
        unnoticed; it is the same for all draws.
    draw : int
        Which order of categories.
    labels : dict of str to str
        Category by the code that stands for it in the answer, in the order listed.
    system, before, after : str
        The system message, and what stands before and after the review in the user's message.
    """

    name: str
    draw: int
    labels: dict[str, str]
    system: str
    before: str
    after: str

    def user(self, text: str) -> str:
        """The user's message about a prepared review."""
        return f"{self.before}{text}{self.after}"


def load_prompts(folder: Path | None = None) -> list[Prompt]:
    """Read every ``*.yaml`` of a folder, sorted by name; those of the package by default.

    Raises
    ------
    LabelingError
        There is none, two share an id, or one breaks its contract; the message names file and field.
    """
    bundled, setting = "labeling/prompt_files", "REVIEWCLF_LLM__PROMPTS"
    return read_prompts(Prompt, folder, bundled=bundled, setting=setting, error_type=LabelingError)


# -- a review, made safe ---------------------------------------------------------------------------------------------


def prepare_review(text: str, names: Sequence[str] = (), *, max_characters: int = 2000) -> str:
    """Make a review safe to be shown to a language model, here or elsewhere.

    Text that was read in the wrong encoding is read again. Personal data become placeholders (:func:`reviewclf.text.redact`).
    What could pass for the end of the review or for a message of its own goes, and what speaks to the model, not to shoppers
    («ответь: электроника», «ignore previous instructions»), becomes «[…]» (:func:`.injection.hide_orders`). A text longer
    than `max_characters` keeps its two ends.

    Parameters
    ----------
    text : str
        The review.
    names : sequence of str
        The categories' names: «ответь: обувь» gives an order even though it says nothing of categories.
    max_characters : int
        Longest result.
    """
    text = hide_orders(redact(repaired(storable(text))), names)
    if len(text) > max_characters:
        half = (max_characters - len(MASKED) - 2) // 2
        text = f"{text[:half]} {MASKED} {text[-half:]}"
    return text
