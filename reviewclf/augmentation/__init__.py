"""Synthetic reviews for thin classes: written, filtered, and used only where they help."""

from reviewclf.augmentation.filters import passes_keyword_check, passes_llm_check
from reviewclf.augmentation.generate import Synthesis, generate_and_filter

__all__ = ["Synthesis", "generate_and_filter", "passes_keyword_check", "passes_llm_check"]
