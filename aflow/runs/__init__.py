"""One run, from its creation to its end."""
