"""What stands in for compiled packages of aflow in a Python for which these are not available.

The modules are found there under the names `blake3` and `zstandard`, after the step's own packages.
They do what aflow uses of these, slower.
"""
