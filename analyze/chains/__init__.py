"""One file per chain detector: effect, cause, join, and what it must never claim. Found by being here."""
