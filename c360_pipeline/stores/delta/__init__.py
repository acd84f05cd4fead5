"""Delta tables in S3."""
