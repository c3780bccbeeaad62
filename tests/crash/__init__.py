"""What is left after a kill, a power loss, a full disk, a fork: longer with ``CRA_CRASH_ROUNDS`` or ``-m slow``."""
