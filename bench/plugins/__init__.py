"""Models outside this package: from a file, from an installed package, from the template."""
