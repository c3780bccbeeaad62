"""One call, from its request to its outcome: let in, decided, asked about, recorded, run or refused.

``call_flow`` is the path; everything else here is a step of it.
"""
