"""The contract of a model family, and code that several families share."""
