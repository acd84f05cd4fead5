"""Audiences: groups of customers by what they are and did, as a document says, and who enters and leaves them."""
