"""Audiences: kept up to date by difference, and delivered."""
