"""One storage a file."""
