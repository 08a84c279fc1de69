"""Where workers come from: processes of this machine, Ray actors, or an outer launcher that has started them."""
