"""The page and its parts, as plain data for the templates. No torch."""
