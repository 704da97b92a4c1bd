"""The language: what a flow is. Pure: no I/O, no clock, no processes."""
