"""One file per rule. A rule is a declaration and one pure function; it is found by being here."""
