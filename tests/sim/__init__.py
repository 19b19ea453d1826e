"""The deterministic simulator: the shipped replica core under a world made from one seed."""
