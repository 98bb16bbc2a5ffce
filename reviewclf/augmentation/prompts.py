"""What a language model is asked to write: versioned prompt files, varied by seed, and its answers read.

Pure but for reading the files once.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from reviewclf.errors import AugmentationError
from reviewclf.llm.prompts import PromptFile, read_prompts
from reviewclf.llm.replies import folded_keys, strip_thoughts
from reviewclf.manifest import digest_of
from reviewclf.taxonomy import Category

_AXES = ("mood", "length", "style", "typos")
_FIELDS = ("n", "category", "description", "products", "examples", *_AXES)
_PLACE = re.compile(r"\{([a-z]+)\}")

NonEmptyList = Annotated[tuple[str, ...], Field(min_length=1)]


class WritingPrompt(PromptFile):
    """One way to ask for reviews; a YAML file.

    Attributes
    ----------
    id, version : str, int
        Name of the prompt, and which state of it.
    products : int
        How many products of the category a request names.
    system, user : str
        The messages. In the second ``{n}``, ``{category}``, ``{description}``, ``{products}``, ``{examples}`` and the four
        axes ``{mood}``, ``{length}``, ``{style}``, ``{typos}`` are filled in.
    examples : str
        The line above the real reviews, where any are shown.
    mood, length, style, typos : list of str
        What is chosen from for a request.
    """

    products: Annotated[int, Field(ge=1)] = 3
    examples: str
    mood: NonEmptyList
    length: NonEmptyList
    style: NonEmptyList
    typos: NonEmptyList

    @model_validator(mode="after")
    def _varies(self) -> WritingPrompt:
        named = set(_PLACE.findall(self.user))
        missing = sorted(set(_FIELDS) - named)
        if missing:
            raise ValueError(f"user: must hold {', '.join(f'{{{name}}}' for name in missing)}")
        unknown = sorted(named - set(_FIELDS))
        if unknown:
            raise ValueError(f"user: nothing is known to fill into {', '.join(f'{{{name}}}' for name in unknown)}")
        return self

    @property
    def name(self) -> str:
        """``id@version+digest`` of every word in it."""
        return f"{self.id}@{self.version}+{digest_of(self)[:8]}"

    def fill(
        self, category: Category, n: int, *, number: int, seed: int, examples: Mapping[str, str] | None = None
    ) -> WritingRequest:
        """Request `number` for `n` reviews of `category`.

        Parameters
        ----------
        number, seed : int
            Together they decide what is chosen from the lists: the same number and seed, the same request.
        examples : mapping of str to str, optional
            Real training reviews by text hash.
        """
        # A string as seed: random.Random then hashes it by a fixed rule, unlike hash().
        generator = random.Random(f"{seed}\0{category.name}\0{self.id}\0{number}")  # noqa: S311 - variety, not a secret
        filled: dict[str, str] = {axis: generator.choice(getattr(self, axis)) for axis in _AXES}
        known = products_of(category)
        filled["products"] = ", ".join(generator.sample(known, min(self.products, len(known))))
        filled["n"] = str(n)
        filled["category"] = category.name
        filled["description"] = " ".join(category.description.split())
        shown = [f"<пример>{text}</пример>" for text in (examples or {}).values()]
        filled["examples"] = "\n".join([self.examples, *shown]) + "\n" if shown else ""
        user = _PLACE.sub(lambda match: filled.get(match[1], match[0]), self.user.strip())
        return WritingRequest(
            category=category.name,
            number=number,
            seed=seed,
            n=n,
            prompt=self.name,
            system=self.system.strip(),
            user=re.sub(r"\n{3,}", "\n\n", user),
            examples=tuple(examples or ()),
        )


class WritingRequest(BaseModel, frozen=True):
    """One request for a few reviews.

    Attributes
    ----------
    category : str
        The class that the reviews shall be of.
    number, seed : int
        Which request of a series.
    n : int
        Reviews asked for.
    prompt : str
        Name of the prompt, with a digest of its words.
    system, user : str
        The messages.
    examples : tuple of str
        Text hashes of the real reviews that are shown.
    """

    category: str
    number: int
    seed: int
    n: int
    prompt: str = "recorded@1"
    system: str = ""
    user: str = ""
    examples: tuple[str, ...] = ()

    def identity(self, generator: str) -> tuple[str, str, str, int, int]:
        """Under which the answer of a generator is kept; see :class:`reviewclf.augmentation.generators.Written`."""
        return (self.category, generator, self.prompt, self.seed, self.number)

    @property
    def own_seed(self) -> int:
        """A seed for the model: another one for each request of a series."""
        return self.seed * 1_000_003 % 2**31 + self.number


def products_of(category: Category) -> list[str]:
    """Products that the description of a category lists; the whole description where it lists none."""
    text = " ".join(category.description.split())
    listed = text.partition(":")[2] or text
    listed = re.split(r"[.;]", listed)[0]
    return [part.strip() for part in listed.split(",") if part.strip()] or [text]


def load_writing_prompts(folder: Path | None = None) -> list[WritingPrompt]:
    """Read every ``*.yaml`` of a folder, sorted by name; those of the package by default.

    Raises
    ------
    AugmentationError
        There is none, two share an id, or one breaks its contract; the message names file and field.
    """
    bundled, setting = "augmentation/prompt_files", "REVIEWCLF_AUGMENTATION__PROMPTS"
    return read_prompts(WritingPrompt, folder, bundled=bundled, setting=setting, error_type=AugmentationError)


# -- an answer, read --------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"```(?:json)?|```")
_KEYS = ("reviews", "отзывы", "texts", "items")
_TEXT_KEYS = ("text", "review", "отзыв", "текст")


def parse_reviews(answer: str, *, is_cut: bool = False) -> list[str]:
    """Read the reviews of an answer: JSON where it is some, whole items where it was cut off, else its lines as they are.

    Nothing is mended here: numbering and quotation marks in lines are for the filters to find. Lines of an answer that was cut
    (`is_cut`) may be a thought that did not come to its end, and are no reviews.
    """
    text = _FENCE.sub(" ", strip_thoughts(answer).text).strip()
    if start := re.search(r"[\[{]", text):
        with contextlib.suppress(ValueError):
            content, _ = json.JSONDecoder().raw_decode(text[start.start() :])
            listed = _field(content, _KEYS) if isinstance(content, dict) else content
            if isinstance(listed, list):
                return [said for item in listed if (said := _text_of(item))]
    before, _, items = text.partition("[")
    if before != text:
        return [said for item in _whole_items(items) if (said := _text_of(item))]
    return [] if is_cut else [line.strip() for line in text.splitlines() if line.strip()]


def _whole_items(text: str) -> Iterator[Any]:
    """Items of a JSON list that may end too early; `text` begins behind its bracket."""
    with contextlib.suppress(ValueError):
        while text := text.lstrip(" \t\r\n,"):
            item, end = json.JSONDecoder().raw_decode(text)
            text = text[end:]
            yield item


def _text_of(item: object) -> str:
    said = _field(item, _TEXT_KEYS) if isinstance(item, dict) else item
    return said.strip() if isinstance(said, str) else ""


def _field(content: dict[str, Any], names: Sequence[str]) -> Any:
    folded = folded_keys(content)
    return next((folded[name] for name in names if name in folded), None)


def told_words(prompts: Sequence[WritingPrompt], category: Category) -> str:
    """What writers are told whatever is chosen for a request, a line a piece, for finding echoes of it."""
    pieces = [piece for prompt in prompts for text in (prompt.system, prompt.user) for piece in _PLACE.split(text)[::2]]
    return "\n".join([*pieces, " ".join(category.description.split())])
