"""Neo4j: statements, one write path, checkpoints."""
