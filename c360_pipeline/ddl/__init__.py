"""Scripts that create the control tables and the graph's constraints and indexes."""
