"""From the landing area into the archive, and the dead-letter queue."""
