"""Visitors: whom events count for, and the sessions of those that name none."""
