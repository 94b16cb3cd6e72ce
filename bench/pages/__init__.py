"""What stands on the pages, as plain data for their templates. No torch."""
