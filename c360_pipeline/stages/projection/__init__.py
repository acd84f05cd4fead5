"""From the archive into the graph: what changed since the graph's checkpoints."""
