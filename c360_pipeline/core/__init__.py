"""The rules of the product: values in, values out. No client, no orchestrator, no clock, no environment."""
