"""S3: the landing area and objects as they are."""
