"""What stands for Metaflow: its names, and the small helpers that its users know."""
