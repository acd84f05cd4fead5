"""Customer 360 graph pipeline: one graph per customer, provably equal to its archive."""

__version__ = "0.1.0"
