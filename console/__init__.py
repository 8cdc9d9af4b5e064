"""The merchant's pages: connect, choose the program, see and mend a connection, look through awards, disconnect."""
