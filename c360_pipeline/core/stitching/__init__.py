"""Stitching: which events belong to one journey, and what the log of stitching says."""
