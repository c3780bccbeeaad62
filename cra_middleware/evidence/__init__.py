"""What a folder of traces proves: verified, and compared with what was held elsewhere."""
