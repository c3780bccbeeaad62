"""What is allowed: the policy decision point. No I/O, no clock, no await."""
