"""The log over the sessions of a folder, and its signed heads."""
