"""Erasure of people from every store, and retention."""
