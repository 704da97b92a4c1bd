"""The user's code: the program that a run is of, and the code package that travels with it."""
