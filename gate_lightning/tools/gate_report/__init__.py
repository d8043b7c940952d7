"""Whether content shift predicts the gain of techniques."""
