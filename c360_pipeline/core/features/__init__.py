"""Features: communities, similar and trending products, paths, account values, and the ranking of recommendations."""
