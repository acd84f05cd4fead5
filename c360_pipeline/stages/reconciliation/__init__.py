"""Graph against archive: what differs, and its repair."""
