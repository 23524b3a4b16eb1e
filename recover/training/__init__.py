"""Networks of the method `joint`: what they learn from, and how. It needs torch."""
