"""What is made from what, where it is kept, and how to ask for it."""
