"""Statistics, figures, tables and sentences, drawn from stored results."""
