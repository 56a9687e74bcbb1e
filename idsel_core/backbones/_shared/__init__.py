"""What the files of the model families are built from."""
