"""The ``audit`` command: one module per subcommand; click is imported nowhere else."""
