"""``python -m cra_middleware`` is ``cra``."""

from cra_middleware.cli import main

if __name__ == "__main__":
    main()
