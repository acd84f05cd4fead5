"""One system each; they know nothing of one another, and nothing of Dagster."""
