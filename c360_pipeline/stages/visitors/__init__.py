"""Visitors: events with whom they count for, what people decided, and the tables of both."""
