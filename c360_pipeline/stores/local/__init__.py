"""Files on this machine: sorted indexes that can be made again at any time, and figures for Prometheus."""
