"""A trace as one HTML page that checks itself in the reader's browser."""

from cra_middleware.trace_page.page import Frame, Stored, csp_hash, render, script_text, style_text

__all__ = ["Frame", "Stored", "csp_hash", "render", "script_text", "style_text"]
