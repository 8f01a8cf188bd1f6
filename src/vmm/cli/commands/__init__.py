"""One file a noun, or a group of verbs; each is imported when it is asked for."""
