"""A site of executed notebooks, figures, tables and runs that opens offline."""
