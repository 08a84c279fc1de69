raise RuntimeError("a plugin with a built-in name was imported")
