"""Pure judgements: one file per kind of external or obstacle."""
