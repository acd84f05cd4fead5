"""The graph made again from its archive, backups, and the script of the silos' graph."""
