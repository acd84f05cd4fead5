"""Dagster assets, one module per stage: read, one pure call, write, metadata; checks stand beside what they guard."""
