"""What Tallydesk remembers: tables, engine, sealing, migrations and the queue. Knows nothing of the rooms above."""
