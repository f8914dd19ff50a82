"""Graph to graph by named rules: the engine, the tables of rules, and the expansions."""
