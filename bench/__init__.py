"""What is measured, against which limit, one command each."""
