"""`aflow tutorials`: flows to learn from, and the command that copies them."""
