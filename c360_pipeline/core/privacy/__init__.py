"""Erasure and retention: whose a row is, by which values a person is found, and what has expired."""
