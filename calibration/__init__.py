"""Reserved for INT8 calibration from real schedules; nothing is here yet."""
