"""Visual tokens that leave between the layers of the language model."""
