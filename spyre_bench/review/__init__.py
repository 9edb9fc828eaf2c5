"""Runs judged: against each other, against a baseline, as a document."""
