"""Bundle → findings: quality grade, statistics, rules, causal chains, waste."""
