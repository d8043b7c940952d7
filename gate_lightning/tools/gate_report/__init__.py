"""Report on how well content shift predicts the gain of techniques."""
