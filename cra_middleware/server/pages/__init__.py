"""A page for people at ``/``: approvals, sessions and Atlases, rendered here and readable without any script.

``visits`` says who a browser is, ``hearing`` hears its requests, ``showing`` renders; ``routes_*`` are the pages.
"""

from cra_middleware.server.pages.front import add_pages

__all__ = ["add_pages"]
