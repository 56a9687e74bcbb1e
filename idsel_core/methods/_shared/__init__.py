"""Bases of the methods, and tensor operations that several methods share."""
