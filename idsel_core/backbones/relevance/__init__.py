"""Shared image-text spaces, which tell how well visual tokens fit the question."""
