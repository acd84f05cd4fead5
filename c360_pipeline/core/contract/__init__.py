"""The event contract: one declaration of an event's fields, and how a line becomes an event."""
