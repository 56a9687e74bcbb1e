"""Shared image-text spaces, which give the relevance of visual tokens to the question."""
