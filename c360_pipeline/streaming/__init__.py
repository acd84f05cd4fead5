"""The real-time path: Kafka, Flink, and the graph, Cassandra and S3 behind it.

`job` is wired by Flink and runs in an environment of its own; `operators` says what it decides and is pure; `sinks`
write. `producer`, `cluster`, `agreement` and `replay` are for who stands outside.
"""

import builtins
import sys

# The `print` of Flink's workers is one that its module does not name, and numba looks for it there.
setattr(sys.modules[builtins.print.__module__], builtins.print.__name__, builtins.print)
