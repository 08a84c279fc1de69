"""What a search leaves for people to read: who won, what it depended on, what to do next."""
