"""Candidates, their training, and the classifiers that come out."""
