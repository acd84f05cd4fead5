"""Silos: control rows, the plan of a run, and joins across databases."""
