"""A governed run: who it is, what it may do, its calls, its end; and the sessions of one runtime."""
