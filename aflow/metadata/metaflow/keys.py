"""Keys of runs that are in other places than aflow's own metadata, and what is said of them."""

FIRST_KEY = 1 << 61
"""Keys of runs from here on are those of what Metaflow has left."""

READ_ONLY = "This run is one of Metaflow's: aflow reads it, and it is never changed."

MARK = "metaflow+"
"""What the URL of the store of a run of Metaflow's has, which only its history can open."""
