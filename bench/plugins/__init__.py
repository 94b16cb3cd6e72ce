"""Models from elsewhere: a file, an installed package, a template."""
