"""Presets: mappings of sources that many teams have, as documents with the framing that their files usually have."""
