"""Sources: their presets, what a file of one would become, and what a better mapping changes."""
