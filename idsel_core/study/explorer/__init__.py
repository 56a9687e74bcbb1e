"""Look at what methods keep of a picture: one state, one page."""
