"""The Delta tables: which there are, what their columns mean and come from, and how two versions differ."""
