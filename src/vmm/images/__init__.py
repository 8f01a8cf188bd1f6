"""How an image or a kernel gets on disk: libraries, sources and disk formats."""
