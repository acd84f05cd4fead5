"""The loops that numba compiles. Each also runs as plain Python (`.py_func`), slowly; only arrays go in and out."""
