"""From source databases into their tables in the lake."""
