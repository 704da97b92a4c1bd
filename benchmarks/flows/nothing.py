"""A program that does nothing: the start-up time of Python."""
