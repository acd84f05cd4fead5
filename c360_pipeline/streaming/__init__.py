"""The real-time path: Kafka, Flink, and the graph, Cassandra and S3 behind it.

`job` is wired by Flink and runs in an environment of its own; `operators` says what it decides and is pure; `sinks`
write. `producer`, `cluster`, `agreement` and `replay` are for who stands outside.
"""
