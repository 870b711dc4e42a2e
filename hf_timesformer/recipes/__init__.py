"""Recipes for `timesformer train --recipe NAME`: argument values as JSON."""
