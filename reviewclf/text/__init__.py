"""Texts of reviews: cleaned, compared, read again where they were misread. Pure: no files, no clock, no randomness."""

from reviewclf.text.cleaning import (
    clean_text,
    clean_texts,
    comparison_form,
    cyrillic_share,
    form_hash,
    normal_form,
    text_hash,
)
from reviewclf.text.lookalikes import folded
from reviewclf.text.misread import is_misread, repaired
from reviewclf.text.redaction import redact

__all__ = [
    "clean_text",
    "clean_texts",
    "comparison_form",
    "cyrillic_share",
    "folded",
    "form_hash",
    "is_misread",
    "normal_form",
    "redact",
    "repaired",
    "text_hash",
]
