"""`python -m c360_pipeline.cli`, the same as `c360`."""

from c360_pipeline.cli import main

main()
