"""One module per agent framework; each imports its own framework, and only the public face of the core."""
