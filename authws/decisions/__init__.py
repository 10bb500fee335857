"""What decides: plain values in, plain values out, no socket and no event loop.

Each module takes an explicit ``now`` and raises an error that knows how to close.
"""
