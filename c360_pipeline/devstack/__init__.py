"""Starts and stops the embedded Postgres, S3 and Neo4j, and makes the sample data."""
