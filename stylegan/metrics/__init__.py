"""Feature networks and the scores computed from their features."""
