"""What is held about people: shown to one who asks, erased for one who asks, and erased when its time is over.

This floor looks at the tables of several rooms, since a person is in several: as a member, as an agent, as an admin.
"""
