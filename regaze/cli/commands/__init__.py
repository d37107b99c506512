"""One module per command of `regaze`, imported when the command runs."""
