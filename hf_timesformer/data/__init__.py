"""Data sets: records, readers, clips in the workers, tar shards, augmentation, preparation."""
