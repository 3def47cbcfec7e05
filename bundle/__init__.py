"""What evidence is: table definitions, the sealed file (write, read, verify), keys, canonical JSON."""
