"""Plans runs of export jobs, freezes them into parts and delivers the parts."""
