"""Postgres: the control database, API keys, and source databases."""
