"""What a person is asked before a call runs: the question, where it is kept, and who answers it."""
