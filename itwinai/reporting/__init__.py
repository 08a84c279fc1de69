"""What a run leaves for people to read: sections, tables, pictures, one page."""
