"""From effects (time somebody lost) and causes (time that can explain it) to chains: every nanosecond allotted once."""
