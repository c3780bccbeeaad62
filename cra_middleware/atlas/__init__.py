"""What exists: actions, policies and context, read from files and checked."""
