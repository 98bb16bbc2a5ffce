"""The writer that the settings ask for."""

from __future__ import annotations

from reviewclf.augmentation.generators.base import Generator
from reviewclf.augmentation.generators.prompted import OpenAIGenerator, TransformersGenerator
from reviewclf.augmentation.generators.recorded import RecordedGenerator
from reviewclf.settings import Settings
from reviewclf.taxonomy import Taxonomy


def make_generator(settings: Settings, taxonomy: Taxonomy) -> Generator | None:
    """The writer that the settings ask for; None where they ask for none, or name no recorded candidates.

    With an annotator of an installed package, which only votes, recorded candidates are tried where there are any.
    """
    backend = settings.llm.backend if settings.augmentation.backend == "auto" else settings.augmentation.backend
    if backend == "openai":
        return OpenAIGenerator(settings.llm, settings.augmentation)
    if backend == "transformers":
        return TransformersGenerator(settings.llm, settings.augmentation)
    if backend == "none" or settings.synthetic is None:
        return None
    return RecordedGenerator.load(settings.synthetic, taxonomy.names)
