"""Small operations on frames and arrays that several stages need: batches, hashes of rows, sorted hashes."""
