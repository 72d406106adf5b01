"""Where the milliseconds of a generation go: the profile, its page, times of operators."""
