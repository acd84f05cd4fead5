"""What Flink's command line runs; the job itself is imported, so that its operators are found by name."""

import sys

from c360_pipeline.streaming.job import main

main(sys.argv[1:])
