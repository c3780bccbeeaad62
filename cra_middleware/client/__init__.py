"""The client of HTTP mode: a runtime whose decisions and traces are at a server. Needs the extra ``http``.

``Runtime.connect`` makes one. Tools run here; whether they may, and what is recorded, is said there.
"""
