"""What the places that keep traces are built of: files, their segments, rows, and what is told of what is durable."""
