"""Tables, figures and the page, from stored records alone. No torch."""
