"""What the programs say about themselves: structured logs without secrets."""
