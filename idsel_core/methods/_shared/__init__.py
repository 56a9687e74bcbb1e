"""What the files of the methods are built from."""
