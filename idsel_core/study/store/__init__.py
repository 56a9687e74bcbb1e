"""Results on disk: rows, times, where they came from, and runs that resume after a kill."""
