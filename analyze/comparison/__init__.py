"""What differs between two captures, and what of it is more than chance: operations, chains, rules, waste, settings."""
