"""Answers from the champion: over HTTP, and for whole tables."""
