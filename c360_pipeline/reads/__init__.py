"""What the API and the pages ask: reads of graph and archive that change nothing."""
