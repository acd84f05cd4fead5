"""Cassandra: events by user and day."""
