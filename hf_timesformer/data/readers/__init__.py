"""One reader a data-set layout: records of videos and labels."""
