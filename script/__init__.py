"""What runs the project: script/server, script/test and script/lock, and the code that they share."""
