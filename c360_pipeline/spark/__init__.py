"""Stitching on Spark, for more keys than one machine holds. The only modules that need pyspark and Java."""
