"""Landing: which lines are new events, duplicates, or dead letters, and whether the accounting of a file adds up."""
