"""Publishing: model cards, pushes, Spaces."""
