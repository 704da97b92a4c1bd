"""Starting one attempt somewhere."""
