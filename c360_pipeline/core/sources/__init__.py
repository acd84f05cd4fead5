"""Sources: what the records of any producer become, by a mapping that is data and not code."""
