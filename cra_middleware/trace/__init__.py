"""What happened: events, their chain, and where they are kept. Knows nothing of policy."""
