"""Pure-Python stand-ins for compiled dependencies of aflow, for a Python that lacks these.

They are imported there under the names `blake3` and `zstandard`, unless the step's environment has
these packages. They implement the parts of the interfaces that aflow uses, more slowly.
"""
