"""Events that the graph shows before they have landed."""
