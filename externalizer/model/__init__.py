"""Pure, frozen types: facts about a process tree, findings, plans and records."""
