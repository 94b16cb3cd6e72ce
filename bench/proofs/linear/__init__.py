"""Linear lower bounds of margins: networks of columns, enclosing lines, compiled passes, least values."""
