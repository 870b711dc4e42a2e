"""Checking a data set once, and packing it into tar shards."""
