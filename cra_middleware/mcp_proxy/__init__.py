"""The MCP proxy: stands between a client and a server of the Model Context Protocol, and governs its tools.

``messages`` and ``catalogue`` are pure; ``gate`` decides; ``relay`` routes messages between two ends, whatever carries
them; ``stdio`` and ``http`` carry them; ``serve`` puts all of it together. The MCP SDK is needed for ``http`` alone.
"""
