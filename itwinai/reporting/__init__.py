"""What people read: formatting, tables, plots, recommendations, one HTML page, and the sections of each domain."""
