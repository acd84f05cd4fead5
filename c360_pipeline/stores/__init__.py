"""I/O, one class per system; no Dagster here."""
