"""The hooks of coding agents: what each one's events say, what it takes for an answer, and what is decided between."""
