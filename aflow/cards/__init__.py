"""Cards: pages that steps leave for people, one self-contained HTML file each."""
