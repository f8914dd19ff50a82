"""Tables of named rules, one line each; `canonicalise` applies the standard ones."""
