"""What is kept on disk: cells and their ids, the shared store, the claims on it, and the sweep's own directory."""
