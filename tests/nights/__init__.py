"""Forty nights in a row on one store: a shop in which everything changes, and a model of what must come of it."""
