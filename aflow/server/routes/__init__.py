"""The routes of the server: the table of all of them, and what answers for the pages."""
