"""Reconciliation: digests and differences of two sides that should be equal."""
