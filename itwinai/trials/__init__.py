"""What a training run and the search that it is a trial of have to say to each other."""
