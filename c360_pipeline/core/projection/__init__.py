"""The projection: how rows of the archive become nodes and relationships."""
