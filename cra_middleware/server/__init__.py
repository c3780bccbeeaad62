"""HTTP mode: one governed runtime for many agents. Needs the extra ``server``.

``host`` is the engine and knows no HTTP; ``access`` says who may do what; ``app`` and ``routes_*`` put both on the
wire; ``assembly`` makes a whole server from names.
"""
