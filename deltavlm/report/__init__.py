"""An output for people: a page that shows it without asking anybody for anything, and a picture."""
