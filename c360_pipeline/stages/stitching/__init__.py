"""From events to journeys: the log of stitching, its index, and the tables made from it."""
