"""A trace as one HTML page that checks itself in the reader's browser."""

from cra_middleware.trace_page.page import render

__all__ = ["render"]
