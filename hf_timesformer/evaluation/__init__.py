"""The paper's protocol: predictions of a whole split over all processes, numbers, report."""
