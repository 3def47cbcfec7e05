"""A capture as a Perfetto trace: threads, off-CPU states, GPU lanes, and the links of chains as flows."""
