"""The page to travel a journey by: one file, index.html, that opens from disk and needs no network."""
