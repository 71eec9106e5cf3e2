"""A run's models at work: loaded, asked, judged and explained."""
